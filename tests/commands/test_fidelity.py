"""Fidelity of a tokenizer's run with a reader that is no network: files, tables, pictures and refused input."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from artifacts.fidelity import Fidelity, by_size, means, tables
from commands import fidelity
from commands.fidelity import measure, pixels_of, save
from commands.placed import choose_words, faces_in, place_faces, place_words
from polytoken import records
from polytoken.errors import UserError
from polytoken.images import from_uint8, to_uint8
from polytoken.loading import Checkpoint, load_tokenizer
from polytoken.metrics.fidelity import face_scores
from tests.support.extractors import MeanColours
from tests.support.generated import write_runs
from tests.support.precision import tf32_of_convolutions

WORDS, SEED = 5, 3


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_runs(tmp_path / "runs/digits", image_size=32)
    return tmp_path / "runs/digits/tokenizer/tiny"


class Reader:
    """Knows what is written: reads it from originals, and `x` from what comes next. Keeps all crops."""

    name, sha256 = "list", "0"

    def __init__(self) -> None:
        self.crops: list[list[np.ndarray]] = []
        self.words = [word.text for word in choose_words(WORDS, 10, 32, SEED)]

    def __call__(self, crops: Sequence[np.ndarray]) -> list[str]:
        self.crops.append(list(crops))
        return self.words if len(self.crops) % 2 else ["x", *self.words[1:]]


def test_originals_and_reconstructions_are_read(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readers: list[Reader] = []

    def new_reader() -> Reader:
        readers.append(Reader())
        return readers[-1]

    with monkeypatch.context() as patch:
        tf32 = tf32_of_convolutions(patch)
        found = measure(run, WORDS, (0.3, 0.25), seed=SEED, new_reader=new_reader)
    assert tf32 == {False}
    assert [(row["pixels"], row["n"]) for row in found.result["text"]] == [(8, WORDS), (10, WORDS)]
    for row in found.result["text"]:
        assert row["original_accuracy"] == row["original_similarity"] == 1
        assert row["accuracy"] == 0.8 <= row["similarity"] < 1
    placed = place_words(choose_words(WORDS, 10, 32, SEED), 8, 32, SEED)
    tokenizer = load_tokenizer(run)
    with torch.no_grad():
        reconstructions = to_uint8(tokenizer(from_uint8(placed.images))[0].image)
    assert len(readers) == 1 and len(readers[0].crops) == 4  # two sizes
    for crops, images in zip(readers[0].crops[:2], (placed.images, reconstructions), strict=True):
        for crop, expected in zip(crops, placed.crops(images), strict=True):
            assert np.array_equal(crop, expected.permute(1, 2, 0).numpy())

    save(run, found)
    assert json.loads((run / "fidelity.json").read_text())["text"] == found.result["text"]
    assert Image.open(run / "fidelity_text.png").height > WORDS * 32
    assert not (run / "fidelity_faces.png").exists()
    (table,) = tables(found.result)
    assert table.rows[0][:3] == ["8 of 32 px", "100.0%", "80.0%"] and table.rows[-1][0] == "mean"
    assert table.caption == "Text: 5 words a size, read by list"
    assert by_size(found.result)["text/accuracy"] == {8: 0.8, 10: 0.8} and means(found.result)["text/accuracy"] == 0.8


def test_faces_are_embedded(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder := tmp_path / "faces").mkdir()
    for number, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (20, 20), colour).save(folder / f"{number}.png")
    monkeypatch.setattr(fidelity, "load_extractor", lambda name, weights, _: MeanColours())
    fidelity.main(["--run", str(run), "--words", "0", "--faces", str(folder), "--extractor", "mean_colours"])
    found = records.read(run / "fidelity.json", Fidelity)
    placed = place_faces(faces_in(folder), 16, 32)
    with torch.no_grad():
        reconstructions = to_uint8(load_tokenizer(run)(from_uint8(placed.images))[0].image)
    embedded = [MeanColours()(torch.stack(placed.crops(one))).pooled for one in (placed.images, reconstructions)]
    assert found["faces"] == [{"pixels": 16, "n": 3, **face_scores(*embedded)._asdict()}]
    assert found["text"] == [] and found["reader"] is None and found["settings"]["faces"] == str(folder)
    assert (run / "fidelity_faces.png").exists() and not (run / "fidelity_text.png").exists()
    assert "16 of 32 px" in capsys.readouterr().out
    (table,) = tables(found)
    assert table.caption == "Faces: 3 a size, cosine by mean_colours" and table.rows[0][0] == "16 of 32 px"


def test_sizes_are_shares_of_the_image() -> None:
    assert pixels_of((), fidelity.WORD_HEIGHTS, 256, 8) == [8, 16, 32, 64]
    assert pixels_of((), fidelity.WORD_HEIGHTS, 64, 8) == [8, 16]
    assert pixels_of((0.5, 0.25, 0.25), (), 64, 8) == [16, 32]
    with pytest.raises(
        UserError, match="a size of 0.0625 is 4 of the 64 pixels of an image: sizes from 0.125 to 1 are"
    ):
        pixels_of((1 / 16, 1 / 2), (), 64, 8)
    with pytest.raises(UserError, match="images of 16 pixels are too small"):
        pixels_of((), fidelity.WORD_HEIGHTS, 16, 8)


def test_what_cannot_be_measured_is_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="0 words and no network"):
        measure(run, 0)
    broken = load_tokenizer(run)
    broken.last_layer.fill_(torch.nan)
    monkeypatch.setattr(Checkpoint, "tokenizer", lambda _: broken)
    with pytest.raises(UserError, match="reconstructions of .* are not finite"):
        measure(run, 1, new_reader=Reader)
