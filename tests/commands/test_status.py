"""A table of stages: finished, unfinished, not begun."""

import os
import time
from pathlib import Path

import pytest
import torch

from artifacts.completion import begin, finish
from commands import status


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A finished teacher and tokenizer, a stage 1 at step 7 of 20, and a damaged sample set."""
    root = tmp_path / "digits"
    for name in ("teacher/mid", "tokenizer/fq_dual", "stage1/fq_dual", "samples/vq"):
        (root / name / "checkpoints").mkdir(parents=True)
        (root / name / "config.yaml").write_text("trainer: {max_steps: 20}\n")
    for name in ("teacher/mid", "tokenizer/fq_dual"):
        assert finish(root / name, "fit", "", [root / name / "config.yaml"], 1200)
    torch.save({"global_step": 7}, root / "stage1/fq_dual/checkpoints/last.ckpt")
    (root / "samples/vq/config.yaml").write_text(": :\n")
    (root / "samples/vq/checkpoints/last.ckpt").write_bytes(b"damaged")
    return tmp_path


def test_stages_are_listed_in_the_order_of_the_curriculum(runs: Path, capsys: pytest.CaptureFixture) -> None:
    old = time.time() - 7200
    os.utime(runs / "digits/tokenizer/fq_dual/done.json", (old, old))
    (runs / "digits/samples/vq/config.yaml").rename(runs / "digits/samples/vq/config_predict.yaml")
    chain = [f"{kind}/fq_dual" for kind in ("tokenizer", "tokens", "stage1", "stage2", "samples")]
    status.main(["--runs", str(runs), *chain])
    lines = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if "/" in line and "│" in line]
    assert [row[:3] for row in rows] == [
        ["teacher/mid", "finished", "1,200"],
        ["tokenizer/fq_dual", "finished", "1,200"],
        ["tokens/fq_dual", "not begun", ""],
        ["stage1/fq_dual", "unfinished", "7 of 20"],
        ["stage2/fq_dual", "not begun", ""],
        ["samples/fq_dual", "not begun", ""],
        ["samples/vq", "unfinished", ""],
    ]
    assert rows[1][3] == "2 h ago" and lines[-1] == "the curriculum is not complete: tokens/fq_dual is not begun"


def test_a_stage_that_starts_again_is_unfinished(runs: Path) -> None:
    begin(runs / "digits/tokenizer/fq_dual")
    (found,) = [one for one in status.stages(runs / "digits", []) if one.name == "tokenizer/fq_dual"]
    assert (found.state, found.step, found.steps) == ("unfinished", None, 20)


def test_an_empty_root(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    stages = ["tokenizer/imagefolder", "samples/imagefolder_next_scale"]
    status.main(["--runs", str(tmp_path), "--next", "next: make demo", *stages])
    out = capsys.readouterr().out
    assert "samples/imagefolder_next_scale" in out
    assert "not complete: tokenizer/imagefolder is not begun; next: make demo" in " ".join(out.split())
