"""Images with captions: the two formats of a folder, the embedded photographs, and the batches."""

import json
from pathlib import Path

import pytest
from PIL import Image

from datamodules import CaptionDataModule, CaptionedFolder, CaptionedPhotos
from datamodules.sources.photo_captions import CAPTIONS
from datamodules.sources.photos import PHOTOGRAPHS
from polytoken.errors import MissingFileError, UserError

LINES = [
    {"image": "a.png", "captions": ["a dog", "a brown dog runs"], "split": "train"},
    {"image": "sub/b.png", "captions": ["two cats", " "], "split": "test"},
    {"image": "c.png", "captions": ["grass"], "split": "val"},
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    for shade, line in enumerate(LINES):
        Image.new("RGB", (12, 8), (shade * 10,) * 3).save(tmp_path / line["image"])
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, LINES)) + "\n")
    images = [
        {
            "filepath": str(Path(line["image"]).parent),
            "filename": Path(line["image"]).name,
            "split": line["split"],
            "sentences": [{"raw": text, "tokens": []} for text in line["captions"]],
        }
        for line in LINES
    ]
    (tmp_path / "dataset.json").write_text(json.dumps({"images": images, "dataset": "any"}))
    return tmp_path


@pytest.mark.parametrize("file", ["captions.jsonl", "dataset.json"])
def test_a_folder_in_both_formats(root: Path, file: str) -> None:
    source = CaptionedFolder(str(root), file)
    train, test = source.split("train"), source.split("validation")
    assert (len(train), len(test), train.label(0)) == (1, 1, 0)
    assert list(train.captions(0)) == ["a dog", "a brown dog runs"] and list(test.captions(0)) == ["two cats"]
    assert test.describe(0) == str(root / "sub/b.png") and test.load(0).getpixel((0, 0)) == (10, 10, 10)
    assert list(CaptionedFolder(str(root), file, validation_split="val").split("validation").captions(0)) == ["grass"]


def test_bad_files_are_one_sentence(root: Path) -> None:
    def refusal(kind: type[UserError], **changes: object) -> str:
        lines = [{**LINES[0], **changes}, LINES[1]]
        (root / "captions.jsonl").write_text(
            "\n".join(json.dumps({k: v for k, v in line.items() if v is not None}) for line in lines)
        )
        with pytest.raises(kind) as caught:
            CaptionedFolder(str(root)).split("train")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "captions.jsonl, line 1: $: object missing required field image" in refusal(UserError, image=None)
    assert "lacks 1 of the 1 train images that captions.jsonl names, the first being gone.png" in refusal(
        MissingFileError, image="gone.png"
    )
    for captions in ([], [" "]):
        assert "captions.jsonl names a.png without a caption: add one" in refusal(UserError, captions=captions)
    assert "no image of the split 'train', and its splits are test, x: set train_split" in refusal(UserError, split="x")
    with pytest.raises(MissingFileError, match=r"none.json is missing: set root and captions of CaptionedFolder"):
        CaptionedFolder(str(root), "none.json").split("train")


def test_every_photograph_has_captions_which_its_windows_share() -> None:
    assert [*CAPTIONS] == [photo.name for photo in PHOTOGRAPHS]
    assert all(len(set(texts)) == 3 and all(len(text.split()) > 4 for text in texts) for texts in CAPTIONS.values())
    records = CaptionedPhotos(validation_crops_per_photo=2).split("validation")
    assert records.captions(6) == records.captions(7) == CAPTIONS["chelsea"] and len(records) == 28
    assert records.load(6).size == (96, 96)


def test_a_batch_carries_the_captions_of_its_images(root: Path) -> None:
    data = CaptionDataModule(CaptionedFolder(str(root)), image_size=8, batch_size=1, num_workers=0)
    data.setup("validate")
    (batch,) = data.val_dataloader()
    batch = data.on_before_batch_transfer(batch, 0)
    assert batch["captions"] == [["two cats"]] and batch["image"].shape == (1, 3, 8, 8)
    padding = data.on_before_batch_transfer({**batch, "index": batch["index"] * 0 - 1}, 0)
    assert padding["captions"] == [["two cats"]]
