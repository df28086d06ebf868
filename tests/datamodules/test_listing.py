"""Listing of image folders: nested folders, other files, links in circles, and files that are no images."""

import os
from pathlib import Path

import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from datamodules import FolderSource
from datamodules.sources.listing import list_images
from polytoken.errors import MissingFileError, UserError


def put(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (9, 8), 7).save(path, format="PNG")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    names = ("cat/b.png", "cat/more/2024/a.png", "cat/more/z.png", "cat/more-1/y.png", "dog/all/x.png")
    put(*(tmp_path / "train" / name for name in names))
    return tmp_path


def names_of(root: Path) -> list[str]:
    records = FolderSource(str(root)).split("train")
    return [os.path.relpath(records.describe(index), root / "train") for index in range(len(records))]


def test_nested_folders_are_walked_in_the_order_of_torchvision(root: Path) -> None:
    other = ImageFolder(str(root / "train"))
    assert names_of(root) == [os.path.relpath(path, root / "train") for path, _ in other.samples]
    records = FolderSource(str(root)).split("train")
    assert [records.label(index) for index in range(len(records))] == other.targets
    assert records.load(1).size == (9, 8)


def test_files_that_are_not_read_are_counted_once(root: Path) -> None:
    for name in ("cat/more/clip.mp4", "cat/notes.txt", "dog/x.heic", "cat/.hidden"):
        (root / "train" / name).touch()
    put(root / "train" / "stray.png")
    with pytest.warns(UserWarning) as said:
        FolderSource(str(root)).split("train")
    text = " ".join(str(warning.message) for warning in said)
    assert "train holds 5 images, and 3 files with other endings, which are not read, such as more/clip.mp4" in text
    assert "train holds 1 images next to its class folders, which are not read, such as stray.png" in text


def test_a_class_without_images_is_one_sentence(root: Path) -> None:
    (root / "train" / "owl").mkdir()
    (root / "train" / "owl" / "clip.mp4").touch()
    with pytest.raises(MissingFileError, match=r"owl holds no images .*, and 1 other files such as clip.mp4: fill it"):
        FolderSource(str(root)).split("train")


def test_a_split_without_class_folders_beside_one_with_them(root: Path) -> None:
    put(root / "val/a.png", root / "val/b.PNG")
    with pytest.raises(
        MissingFileError, match=r"val holds 2 images and no class folders: sort them .* as in train, or"
    ):
        FolderSource(str(root)).split("validation")
    assert len(FolderSource(str(root), labelled=False).split("validation")) == 2


def test_links_in_circles_end(root: Path) -> None:
    before = names_of(root)
    (root / "train" / "cat" / "up").symlink_to(root / "train")  # would add the dogs to the cats
    (root / "train" / "cat" / "same").symlink_to(root / "train" / "cat" / "more")  # a second way to the same images
    assert names_of(root) == before
    (root / "train" / "owl").symlink_to("owl")
    with pytest.raises(MissingFileError, match="owl is a link that leads nowhere, or in a circle"):
        FolderSource(str(root)).split("train")


def test_an_image_that_is_a_circular_link_or_a_pipe_is_unreadable(root: Path) -> None:
    (root / "train" / "cat" / "me.png").symlink_to("me.png")
    os.mkfifo(root / "train" / "cat" / "pipe.png")
    records = FolderSource(str(root)).split("train")
    assert names_of(root)[1:3] == ["cat/me.png", "cat/pipe.png"]
    for index, says in ((1, "Too many levels"), (2, "no regular file")):
        with pytest.raises(OSError, match=says):
            records.load(index)


def test_a_folder_that_cannot_be_listed_is_one_sentence(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scan = os.scandir

    def scandir(path: str) -> object:
        if str(path).endswith("2024"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UserError, match="2024 cannot be listed .Permission denied.: allow reading it"):
        list_images(root / "train" / "cat")
