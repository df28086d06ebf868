"""A tokenizer's run that is killed and resumed equals an uninterrupted one, bit for bit."""

import signal
from pathlib import Path

import pytest
import torch

from tests.end_to_end.test_cli import assert_equal
from tests.support.commands import exit_code, forked
from tests.support.recipes import digits, write_judge

OVERLAY = """
trainer:
  max_steps: 12
  val_check_interval: 4
  limit_val_batches: 1
  enable_progress_bar: false
  callbacks:
    - {{class_path: callbacks.LastCheckpoint, init_args: {{every_n_train_steps: 3}}}}
    - {{class_path: callbacks.RandomState}}
    - {{class_path: callbacks.EMA, init_args: {{modules: [tokenizer]}}}}
    - {{class_path: tests.support.interrupt.KillAfter, init_args: {{step: {kill_after}}}}}
data: {{init_args: {{num_workers: {workers}, batch_size: 4}}}}
model:
  init_args:
    objective: {{adversarial: {{start_step: 5, lecam: {{weight: 0.1}}, augmentation: {{probability: 0.5}}}}}}
    accumulate_steps: {accumulate}
"""


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "accumulate"), [(0, 1), (2, 2)])
def test_killed_after_step_7(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int, accumulate: int) -> None:
    judge = write_judge(tmp_path / "judge.safetensors")

    def arguments(root: str, kill_after: int) -> list[str]:
        overlay = tmp_path / "overlay.yaml"
        overlay.write_text(OVERLAY.format(kill_after=kill_after, workers=workers, accumulate=accumulate))
        return ["fit", *digits("fq_dual", judge), "--config", str(overlay), "--run.root", root]

    def state(root: str) -> dict:
        path = tmp_path / root / "digits/tokenizer/fq_dual/checkpoints/last.ckpt"
        return torch.load(path, weights_only=True)

    monkeypatch.chdir(tmp_path)
    assert exit_code(*arguments("whole", kill_after=-1)) == 0  # in this process, to save imports
    assert forked(*arguments("killed", kill_after=7), cwd=tmp_path).returncode == -signal.SIGKILL
    assert state("killed")["global_step"] == 6
    assert forked(*arguments("killed", kill_after=-1), cwd=tmp_path).returncode == 0

    whole, resumed = state("whole"), state("killed")
    assert whole["global_step"] == 12
    assert len(whole["optimizer_states"]) == 2
    assert_equal(resumed, whole)  # weights, both optimizers, random states
    (average,) = (value for key, value in whole["callbacks"].items() if "EMA" in key)
    assert average["updates"] == 12
    assert_equal(resumed["callbacks"], whole["callbacks"], "callbacks")
