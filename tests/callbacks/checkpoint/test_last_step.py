"""A run that is left at its last step, or in the validation after it, ends as an undisturbed one."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.support.commands import TOY, exit_code, go_to
from tests.support.slow import slow_but

OVERLAY = """
trainer:
  max_steps: 4
  check_val_every_n_epoch: null
  callbacks:
    - {class_path: callbacks.LastCheckpoint, init_args: {every_n_train_steps: 3, monitor: val/loss}}
    - {class_path: callbacks.Requeue}
    - {class_path: callbacks.RandomState}
    - {class_path: callbacks.MetricsFile}
    - {class_path: callbacks.KeptCheckpoints, init_args: {every_n_train_steps: 2}}
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_to(tmp_path, monkeypatch)
    Path("overlay.yaml").write_text(OVERLAY)


def fit(root: str, interval: int, leaves: bool = False, in_validation: bool = False) -> int:
    added = [{"class_path": "tests.support.interrupt.KillAfter"}]
    added[0]["init_args"] = {"step": 4 if leaves else -1, "name": "SIGUSR1", "in_validation": in_validation}
    options = ["--trainer.val_check_interval", str(interval), "--trainer.callbacks+", yaml.safe_dump(added)]
    return exit_code("fit", "--config", TOY, "--config", "overlay.yaml", "--run.root", root, *options)


def files(root: str) -> dict[str, Any]:
    """The step of each checkpoint, the content of JSON files."""
    run = Path(root, "default/toy")
    steps = {path.name: torch.load(path, weights_only=True)["global_step"] for path in run.glob("checkpoints/*.ckpt")}
    records = [run / "metrics.json", run / "checkpoints/best.json"]
    return {**steps, **{path.name: json.loads(path.read_text()) for path in records}}


@pytest.mark.parametrize(
    ("in_validation", "interval"),
    # at the end of the step, in the fit's last validation, in the one after the fit
    slow_but(("False",), ((False, 2), (True, 2), (True, 3))),
)
def test_a_run_that_left_at_its_last_step_equals_an_undisturbed_one(in_validation: bool, interval: int) -> None:
    assert fit("whole", interval) == 0
    whole = files("whole")
    assert whole["best.ckpt"] == whole["step_4.ckpt"] == 4 and whole["metrics.json"].keys() == {"fit", "validate"}
    assert whole["metrics.json"]["fit"]["metrics"].keys() == {"train/loss"}

    assert fit("left", interval, leaves=True, in_validation=in_validation) == 75
    assert not Path("left/default/toy/done.json").exists()
    assert fit("left", interval) == 0
    assert files("left") == whole
    assert fit("left", interval) == 0  # a finished run that is started again
    assert files("left") == whole
