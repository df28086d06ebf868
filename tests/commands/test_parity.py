"""Comparison of a released tokenizer with its authors, for whose code plain PyTorch by the released names stands in."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from commands import reference
from commands.parity import main
from polytoken.images import from_uint8
from polytoken.pretrained.released import RELEASES
from tests.support.extractors import MeanColours
from tests.support.released import small_state
from tests.support.released_networks import as_ldm, ldm_decode, ldm_encode

NAME = "llamagen/vq_ds16_c2i"
FILES = ("--file", "vq.pt", "--to", "out", "--data", "images")
COLOUR = torch.tensor([200.0, 90.0, 60.0])
Run = Callable[..., tuple[int, str]]


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """A tokenizer of 32 pixels whose reconstructions are near one colour, and images near it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(RELEASES, NAME, replace(RELEASES[NAME], image_size=32))
    state = small_state("llamagen_vq_ds16", {128: 8, 256: 16, 512: 32, 16384: 64}, {})
    state["decoder.conv_out.weight"] /= 20
    state["decoder.conv_out.bias"] = from_uint8(COLOUR)
    torch.save({"model": state}, "vq.pt")
    Path("images/more").mkdir(parents=True)
    draw = np.random.default_rng(0)
    for number in range(12):
        pixels = COLOUR.numpy() + draw.normal(0, 20, (40, 50, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(f"images/{'more/' * (number % 2)}{number}.png")
    return state


@pytest.fixture
def run(capsys: pytest.CaptureFixture) -> Run:
    def ran(*options: str) -> tuple[int, str]:
        try:
            main([*options])
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        said = capsys.readouterr()
        return code, said.err if code == 2 else said.out

    return ran


def authors(state: dict[str, torch.Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """Codes (n, h, w) and reconstructions float (n, 3, H, W) of the images that the program has written."""
    with np.load("out/images.npz") as archive:
        images = from_uint8(torch.from_numpy(archive["arr_0"]).permute(0, 3, 1, 2)).double()
    state = as_ldm({name: tensor.double() for name, tensor in state.items()})
    table = functional.normalize(state["quantize.embedding.weight"])
    codes = torch.einsum("bchw,kc->bkhw", ldm_encode(state, images), table).argmax(1)
    return codes.numpy(), ldm_decode(state, table[codes].permute(0, 3, 1, 2)).float().numpy()


def test_codes_and_reconstructions_of_the_authors(run: Run, state: dict[str, torch.Tensor]) -> None:
    code, said = run(NAME, *FILES)
    assert code == 0 and said.count("not checked") == 3 and re.search(r"reconstruction +holds .*of 64", said)
    assert Image.open("out/reconstructions.png").width > 8 * 64

    codes, images = authors(state)
    assert codes.shape == (8, 2, 2)
    np.savez("codes.npz", codes)
    np.savez("images.npz", images)
    theirs = ("--reference-codes", "codes.npz", "--reference-images", "images.npz")
    code, said = run(NAME, *FILES, *theirs)
    assert code == 0 and re.search(r"codes +holds +100.0000%", said) and re.search(r"decoder +holds", said), said
    pixels = ((images.clip(-1, 1) * 127.5) + 128).clip(0, 255).astype(np.uint8)
    np.savez("images.npz", pixels.transpose(0, 2, 3, 1))
    assert re.search(r"decoder +holds", run(NAME, *FILES, *theirs)[1])

    codes[0, 0, 0] = (codes[0, 0, 0] + 1) % 64
    np.savez("codes.npz", codes)
    code, said = run(NAME, *FILES, *theirs)
    assert code == 1 and re.search(r"codes +fails +96.8750%", said) and re.search(r"decoder +fails", said)
    np.savez("codes.npz", authors(state)[0])
    np.savez("images.npz", images + 0.003)
    code, said = run(NAME, *FILES, *theirs)
    assert code == 1 and re.search(r"codes +holds", said) and re.search(r"decoder +fails", said)


def test_rfid_is_compared_with_the_published_one(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    extractor = MeanColours()
    extractor.name = "inception"
    monkeypatch.setattr("commands.parity.load_extractor", lambda *_: extractor)
    run(NAME, *FILES, "--images", "12")
    source = reference.Source.of_npz(Path("out/images.npz"))
    reference.measure(source, "validation", extractor, 0, Path("twelve.npz"))
    code, said = run(NAME, *FILES, "--rfid", "twelve.npz")
    found = re.search(r"rFID +fails +(\d+\.\d+) over 12 images; published 2.19", said)
    assert code == 1 and found, said
    monkeypatch.setitem(RELEASES, NAME, replace(RELEASES[NAME], published=f"rFID {found[1]}"))
    code, said = run(NAME, *FILES, "--rfid", "twelve.npz")
    assert code == 0 and re.search(r"rFID +holds", said)
    Path("images/0.png").unlink()
    code, said = run(NAME, *FILES, "--rfid", "twelve.npz")
    assert code == 0 and re.search(r"rFID +not checked .* reference is of 12 images", said)


def test_another_decoder_is_noticed(run: Run, state: dict[str, torch.Tensor]) -> None:
    torch.save({"model": state | {"decoder.conv_out.bias": -from_uint8(COLOUR)}}, "vq.pt")
    code, said = run(NAME, *FILES)
    assert code == 1 and re.search(r"reconstruction +fails", said)


def test_the_validation_split_of_a_preset(run: Run) -> None:
    code, said = run(NAME, "--file", "vq.pt", "--preset", "digits", "--images", "3")
    assert code == 1 and re.search(r"reconstruction +fails", said)  # digits are black
    with np.load(f"runs/parity/{NAME}/images.npz") as archive:
        assert archive["arr_0"].shape == (3, 32, 32, 3)


def test_mistakes(run: Run) -> None:
    np.savez("short.npz", np.zeros((8, 3), dtype=np.int64))
    np.savez("large.npz", np.full((8, 4), 64))
    np.savez("named.npz", codes=np.zeros((8, 4), dtype=np.int64))
    Path("text.npz").write_text("no archive")
    Path("sorted/val").mkdir(parents=True)
    for options, sentence in (
        (("llamagen/c2i_B_256", *FILES), "is a generator: compare its tokenizer llamagen/vq_ds16_c2i"),
        (("llamagen/vq", *FILES), "there is no released checkpoint 'llamagen/vq'"),
        ((NAME, *FILES, "--data", "nowhere"), "nowhere is not a folder"),
        ((NAME, *FILES, "--data", "sorted"), "reads 32 pixels, and imagenet has 256"),
        ((NAME, *FILES, "--reference-codes", "short.npz"), "short.npz holds torch.int64 (8, 3), and our codes"),
        ((NAME, *FILES, "--reference-codes", "large.npz"), "large.npz: sub-code 0 ranges from 64 to 64"),
        ((NAME, *FILES, "--reference-codes", "named.npz"), "it has no array arr_0, only codes"),
        ((NAME, *FILES, "--reference-codes", "text.npz"), "text.npz cannot be read"),
        ((NAME, *FILES, "--reference-images", "short.npz"), "short.npz holds images of (8, 3)"),
        ((NAME, *FILES, "--rfid", "nowhere.npz"), "make weights"),
        ((NAME, *FILES, "--to", "vq.pt"), "vq.pt"),
    ):
        code, said = run(*options)
        assert code == 2 and sentence in said and said.count("\n") == 1, (options, said)
    assert "argument --images: expected a whole number of at least 1, got '0'" in run(NAME, "--images", "0")[1]
