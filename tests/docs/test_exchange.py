"""The training loop of docs/exchange.md learns from the codes of an exported tokenizer."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from commands import export
from datamodules.sources import DigitsSource
from polytoken.images import from_uint8
from polytoken.pretrained import save_pretrained
from tests.support.commands import REPOSITORY
from tests.support.generated import write_runs

BLOCKS = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs/exchange.md").read_text(), re.DOTALL)


def digits(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images in [-1, 1] and their labels."""
    source = DigitsSource().split("train")
    pixels = np.stack([np.asarray(source.load(index)) for index in range(count)])
    return from_uint8(torch.from_numpy(pixels).permute(0, 3, 1, 2)), torch.from_numpy(source.labels[:count])


@pytest.mark.slow
def test_the_training_loop_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (loop,) = (block for block in BLOCKS if "loss.backward()" in block)
    assert len([line for line in loop.splitlines() if line]) <= 15
    monkeypatch.chdir(tmp_path)
    write_runs(Path("digits"), image_size=32)
    save_pretrained("digits/tokenizer/tiny", "mine/fq_dual")
    images, labels = digits(64)
    names: dict[str, Any] = {"loader": [(images, labels)] * 40}
    torch.manual_seed(0)
    exec(loop, names)
    assert names["loss"] < 0.5  # of ten classes: an untrained model has 2.3


@pytest.mark.slow
def test_programs_sample_with_torch_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (loop,) = (block for block in BLOCKS if "exponential_()" in block)
    monkeypatch.chdir(tmp_path)
    run = write_runs(Path("digits"), image_size=32)
    export.main([str(run), "--to", "mine/digits", "--format", "pt2"])
    names: dict[str, Any] = {}
    exec(loop, names)
    assert names["images"].shape == (3, 3, 32, 32) and bool(names["images"].isfinite().all())
