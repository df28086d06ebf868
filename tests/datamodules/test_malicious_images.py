"""PostScript named like an image: Pillow would pass it to Ghostscript, which executes it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import EpsImagePlugin, Image, UnidentifiedImageError

from datamodules import CaptionedFolder, FolderSource, HubSource, ImageDataModule, ReferenceDataModule
from datamodules.sources import ImageSource
from polytoken.errors import UserError
from polytoken.images import read_image
from tests.datamodules.memory import Diary, quiet_trainer

POSTSCRIPT = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(ran) (w) file closefile\nshowpage\n%%EOF\n"
)


@pytest.fixture(autouse=True)
def ghostscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program `gs` on PATH that writes a file when it is started."""
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # Pillow caches the absence of Ghostscript
    return tmp_path / "ran"


def folder(root: Path) -> ImageSource:
    for split in ("train", "val"):
        (root / split / "cat").mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(root / split / "cat" / "good.png")
        (root / split / "cat" / "x.png").write_bytes(POSTSCRIPT)
    return FolderSource(str(root))


def hub(root: Path) -> ImageSource:
    from datasets import ClassLabel, Dataset, DatasetDict, Features
    from datasets import Image as ImageFeature

    folder(root / "files")
    good, evil = (root / "files/train/cat" / name for name in ("good.png", "x.png"))
    rows = [
        {"bytes": good.read_bytes(), "path": None},
        {"bytes": POSTSCRIPT, "path": "x.eps"},
        {"bytes": None, "path": str(evil)},
    ]
    features = Features({"image": ImageFeature(decode=False), "label": ClassLabel(names=["cat"])})
    table = Dataset.from_dict({"image": rows, "label": [0, 0, 0]}, features=features)
    table = table.cast_column("image", ImageFeature())
    DatasetDict({"train": table, "validation": table}).save_to_disk(str(root / "saved"))
    return HubSource(str(root / "saved"))


def test_ghostscript_would_run_without_the_list_of_formats(ghostscript: Path, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(POSTSCRIPT)
    with pytest.raises(Exception), Image.open(tmp_path / "x.png") as image:  # noqa: B017
        image.load()
    assert ghostscript.exists()


@pytest.mark.parametrize("source", [folder, hub])
def test_postscript_is_an_unreadable_image(
    source, ghostscript: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = source(tmp_path / "data")
    split = images.split("validation")
    for index in range(1, len(split)):
        with pytest.raises(UnidentifiedImageError):
            split.load(index)
    diary = Diary()
    data = ImageDataModule(images, 8, num_workers=0, max_bad_fraction=0.9)
    quiet_trainer().validate(diary, datamodule=data, verbose=False)
    assert [batch["index"].tolist() for batch in diary.evaluated] == [[0]]
    assert caplog.text.count("skips an unreadable validation image") == len(split) - 1
    assert not ghostscript.exists()


def test_postscript_is_no_reference_no_captioned_image_and_no_picture(ghostscript: Path, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(POSTSCRIPT)
    (tmp_path / "captions.jsonl").write_text('{"image": "x.png", "captions": ["a cat"], "split": "train"}')
    with pytest.raises(UserError, match="the reference .*x.png cannot be read"):
        _ = ReferenceDataModule(8, [0], folder=str(tmp_path)).references
    with pytest.raises(UnidentifiedImageError):
        CaptionedFolder(str(tmp_path)).split("train").load(0)
    with pytest.raises(UserError, match="x.png cannot be read as an image"):
        read_image(tmp_path / "x.png", 8)
    assert not ghostscript.exists()
