"""Two ranks, one of which receives a signal, exit together and resume bit for bit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support.commands import REPOSITORY

CHECKPOINTS = Path("digits/stage2/fq_dual/checkpoints")


@pytest.mark.cluster
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.two_ranks"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    (interrupted,) = (json.loads(line) for line in done.stdout.splitlines() if line.startswith("{"))
    assert interrupted["exit_code"] == 75, interrupted
    assert "another rank was asked to stop" in done.stderr and "holds step 3" in done.stderr
    whole, resumed = (
        torch.load(tmp_path / root / CHECKPOINTS / "last.ckpt", weights_only=True) for root in ("whole", "interrupted")
    )
    assert whole["global_step"] == resumed["global_step"] == 5
    assert len(whole["random_state"]) == 2
    for name, value in whole["state_dict"].items():
        torch.testing.assert_close(resumed["state_dict"][name], value, rtol=1e-6, atol=1e-7)
    for one, other in zip(whole["random_state"], resumed["random_state"], strict=True):
        assert torch.equal(one["torch"], other["torch"])
    averages = [state["callbacks"]["EMA"]["average"] for state in (whole, resumed)]
    for name, value in averages[0].items():
        torch.testing.assert_close(averages[1][name], value, rtol=1e-6, atol=1e-7)
