"""Images without labels, and folders without splits."""

import logging
import shutil
from pathlib import Path

import pytest

from datamodules import FolderSource, HubSource
from polytoken.errors import MissingFileError, UserError
from tests.datamodules.test_listing import put
from tests.datamodules.test_sources import hub_cache, hub_table

__all__ = ["hub_cache"]  # a fixture


def read(source: FolderSource | HubSource) -> tuple[list[str], set[int]]:
    """Places of all images of both splits, and their classes."""
    splits = (source.split("train"), source.split("validation"))
    places = [split.describe(index) for split in splits for index in range(len(split))]
    assert len(set(places)) == len(places)
    return sorted(places), {split.label(index) for split in splits for index in range(len(split))}


def paths(root: Path, *folders: str) -> list[Path]:
    return sorted(root / folder / f"{index}.png" for folder in folders for index in range(10))


def test_images_directly_below_the_splits_are_one_class(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = paths(tmp_path / "a", "train", "val")
    put(*files)
    source = FolderSource(str(tmp_path / "a"))
    with caplog.at_level(logging.INFO):
        assert read(source) == ([str(file) for file in files], {0})
    assert source.class_to_idx == {"all": 0}
    assert f"{tmp_path}/a/train is read as images of no labels, one class named all" in caplog.messages


def test_a_folder_of_images_alone(tmp_path: Path) -> None:
    root = tmp_path / "a"
    put(*paths(root, ""))
    with pytest.raises(MissingFileError, match=r"has no train/: .* or without labels, or set held_out \(0.05\)"):
        FolderSource(str(root)).split("train")
    source = FolderSource(str(root), 0.3)
    assert read(source) == ([str(file) for file in paths(root, "")], {0}) and source.class_to_idx == {"all": 0}
    digest = source.split("train").digest()
    shutil.move(root, tmp_path / "moved")
    assert FolderSource(str(tmp_path / "moved"), 0.3).split("train").digest() == digest, "a moved data set resumes"


def test_a_folder_of_class_folders_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(*paths(tmp_path, "cat", "dog/2024"))
    source = FolderSource(str(tmp_path), 0.3)
    with caplog.at_level(logging.INFO):
        assert read(source) == ([str(file) for file in paths(tmp_path, "cat", "dog/2024")], {0, 1})
    assert source.class_to_idx == {"cat": 0, "dog": 1}
    assert f"{tmp_path} is read as images of 2 classes, one a folder" in caplog.messages


def test_folders_that_are_no_classes(tmp_path: Path) -> None:
    put(*paths(tmp_path, "00000", "01000"))
    source = FolderSource(str(tmp_path), 0.3, labelled=False)
    assert read(source) == ([str(file) for file in paths(tmp_path, "00000", "01000")], {0})
    assert source.class_to_idx == {"all": 0}
    put(tmp_path / "stray.png")
    with pytest.raises(UserError, match="holds images next to its folders, so .* classes or not: .* set labelled to"):
        FolderSource(str(tmp_path), 0.3).split("train")
    (tmp_path / "stray.png").unlink()
    put(tmp_path / "test" / "a.png")
    with pytest.raises(UserError, match="test looks like a split and not like a class: name the folders"):
        FolderSource(str(tmp_path), 0.3).split("train")


def test_a_split_alone_is_not_a_class(tmp_path: Path) -> None:
    put(*paths(tmp_path, "val/cat"))
    with pytest.raises(MissingFileError, match="has no train/"):
        FolderSource(str(tmp_path), 0.3).split("train")


@pytest.mark.usefixtures("hub_cache")
def test_a_data_set_without_label_column(tmp_path: Path) -> None:
    hub_table([0, 1, 2] * 8, 0).remove_columns("label").save_to_disk(str(tmp_path / "one"))
    with pytest.raises(UserError, match="no column 'label', only image: .*, or to null for images without labels"):
        HubSource(str(tmp_path / "one"), held_out=0.25).split("train")
    source = HubSource(str(tmp_path / "one"), label_column=None, held_out=0.25)
    places, classes = read(source)
    assert len(places) == 24 and classes == {0} and source.class_to_idx == {"all": 0}
