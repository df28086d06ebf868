"""Reconstructions of TokBench's folders: names, sizes, and the place of an image in its square."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from commands import tokbench
from polytoken.errors import MissingFileError
from polytoken.images import from_uint8, to_uint8
from polytoken.loading import load_tokenizer
from tests.support.generated import write_runs


def test_reconstructions_have_the_names_and_sizes_of_the_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_runs(tmp_path / "runs/digits")
    run, images = tmp_path / "runs/digits/tokenizer/tiny", tmp_path / "TokBench/images"
    random = np.random.default_rng(0)
    for name, shape in {
        "text_data/ic13/a.png": (16, 16),
        "text_data/ic13/b.jpg": (20, 41),
        "face_data/wflw/c.png": (9, 7),
    }.items():
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (*shape, 3), np.uint8)).save(images / name)
    arguments = ("--run", str(run), "--data", str(tmp_path / "TokBench"))
    tokbench.main([*arguments])
    found = {str(path.relative_to(run / "tokbench")): Image.open(path).size for path in (run / "tokbench").rglob("*.*")}
    assert found == {
        "text_data/ic13_16/a.png": (16, 16),
        "text_data/ic13_16/b.jpg": (41, 20),
        "face_data/wflw_16/c.png": (7, 9),
    }
    image = torch.from_numpy(np.array(Image.open(images / "text_data/ic13/a.png"))).permute(2, 0, 1)
    with torch.no_grad():  # of the size of the tokenizer, so nothing is scaled
        decoded = to_uint8(load_tokenizer(run)(from_uint8(image.unsqueeze(0)))[0].image)[0]
    written = torch.from_numpy(np.array(Image.open(run / "tokbench/text_data/ic13_16/a.png"))).permute(2, 0, 1)
    assert (written.int() - decoded).abs().max() <= 1  # a batch of two rounds otherwise
    assert "2 sets of reconstructions" in capsys.readouterr().out
    with pytest.raises(MissingFileError, match="no images/text_data/<set>"):
        tokbench.write_reconstructions(load_tokenizer(run), tmp_path, tmp_path, run)


def test_an_image_lies_in_the_middle_of_a_black_square() -> None:
    square, box = tokbench.letterbox(Image.new("RGB", (30, 10), "white"), 16)
    assert box == (0, 5, 16, 11)  # ceil(16 / 3) rows
    pixels = np.asarray(square)
    assert (pixels[5:11] == 255).all() and not pixels[:5].any() and not pixels[11:].any()
    assert tokbench.letterbox(Image.new("RGB", (10, 1000), "white"), 16)[1] == (7, 0, 8, 16)
