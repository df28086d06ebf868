"""Weights that give no finite loss replace no checkpoint that has given one."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from artifacts.checkpoint_files import copy
from callbacks.checkpoint.last_checkpoint import LastCheckpoint
from polytoken.errors import RunError
from polytoken.guard import NonFiniteError, NonFiniteGuard
from tests.callbacks.checkpoint.test_last_checkpoint import FakeTrainer, contents
from tests.support.commands import exit_code
from tests.support.generator_recipes import tiny, write_digit_codes


class Run:
    """Batches of a trainer whose module leaves out some steps, each of which counts, as those of a generator."""

    def __init__(self, place: Path, every: int = 1, start: int = 0, read: str = "last.ckpt") -> None:
        self.callback = LastCheckpoint(every, dirpath=str(place), every_minutes=None)
        self.module = SimpleNamespace(guard=NonFiniteGuard(100))
        self.trainer = FakeTrainer(
            **{"global_step": start, "max_steps": -1, "saved": [], "fast_dev_run": 0, "breaks": False},
            ckpt_path=str(place / read) if start else None,
            validations={},
        )
        self.callback.on_train_start(self.trainer, self.module)

    def train(self, *finite: bool) -> "Run":
        for accepted in finite:
            self.module.guard.in_a_row = 0 if accepted else self.module.guard.in_a_row + 1
            self.trainer.global_step += 1
            self.callback.on_train_batch_end(self.trainer, self.module, None, None, 0)
        return self

    def fail(self) -> "Run":
        self.callback.on_exception(self.trainer, self.module, NonFiniteError("11 in a row"))
        return self


def test_the_ruined_checkpoint_gives_its_name_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = Run(tmp_path).train(True, True, True, False, False)
    assert contents(tmp_path) == {"last.ckpt": "3", "previous.ckpt": "2"}
    copy(tmp_path / "last.ckpt", tmp_path / "step_3.ckpt")  # a hard link, as KeptCheckpoints makes
    run.fail()
    assert contents(tmp_path) == {"last.ckpt": "2", "previous.ckpt": "2", "ruined.ckpt": "3"}
    assert "last.ckpt have given no finite loss" in caplog.text and "the one before takes its place" in caplog.text


def test_a_checkpoint_that_gave_a_finite_loss_stays(tmp_path: Path) -> None:
    Run(tmp_path, every=2).train(True, True, True, False).fail()
    assert contents(tmp_path) == {"last.ckpt": "2"}


def test_a_kill_before_the_loss_leaves_the_checkpoint_to_the_next_start(tmp_path: Path) -> None:
    Run(tmp_path).train(True, True, True)  # killed
    Run(tmp_path, start=3).train(False, False).fail()
    assert contents(tmp_path) == {"last.ckpt": "2", "previous.ckpt": "2", "ruined.ckpt": "3"}
    again = Run(tmp_path, start=2).train(True, False).fail()
    assert again.trainer.saved == [3]
    assert contents(tmp_path) == {"last.ckpt": "2", "previous.ckpt": "2", "ruined.ckpt": "3"}


def test_the_only_checkpoint_of_an_earlier_start_stays(tmp_path: Path) -> None:
    """Other data may be at fault; to begin again is left to the person."""
    Run(tmp_path).train(True)
    Run(tmp_path, start=1).train(False, False).fail()
    assert contents(tmp_path) == {"last.ckpt": "1"}


def test_a_due_checkpoint_waits_for_a_finite_loss(tmp_path: Path) -> None:
    assert Run(tmp_path, every=2).train(True, False, False, True).trainer.saved == [4]
    (tmp_path / "other").mkdir()
    assert Run(tmp_path / "other", every=2).train(True, False, True).trainer.saved == [3]


def test_a_run_does_not_end_on_steps_that_were_left_out(tmp_path: Path) -> None:
    run = Run(tmp_path).train(True, True, False, False)
    with pytest.raises(RunError, match="the run ends at step 4 with weights whose loss is not finite"):
        run.callback.on_train_end(run.trainer, run.module)
    assert contents(tmp_path) == {"last.ckpt": "1", "previous.ckpt": "1", "ruined.ckpt": "2"}


def test_one_bad_batch_at_the_end_does_not_lose_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A restart would meet the same batch."""
    run = Run(tmp_path).train(True, True, False)
    run.callback.on_train_end(run.trainer, run.module)
    assert contents(tmp_path) == {"last.ckpt": "3", "previous.ckpt": "1"}
    assert "the last step was left out as not finite" in caplog.text


def test_a_last_checkpoint_that_was_not_read_stays(tmp_path: Path) -> None:
    """A start from another checkpoint says nothing about it."""
    Run(tmp_path).train(True, True, True)
    Run(tmp_path, start=2, read="previous.ckpt").train(False, False).fail()
    assert contents(tmp_path) == {"last.ckpt": "3", "previous.ckpt": "2"}


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    run = Run(tmp_path).train(True)
    run.trainer.lightning_module = torch.nn.Linear(2, 2)
    torch.nn.init.constant_(run.trainer.lightning_module.bias, float("inf"))
    run.train(True)
    assert contents(tmp_path) == {"last.ckpt": "1"}


def test_an_absurd_learning_rate_leaves_no_ruined_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["cli.py"])
    write_digit_codes(Path("store"))
    arguments = ["fit", *tiny("stage1", Path("store")), "--trainer.max_steps", "20"]
    arguments += ["--model.init_args.optimizer.learning_rate", "1e25", "--model.init_args.optimizer.warmup_steps", "0"]
    callbacks = [{"class_path": "callbacks.LastCheckpoint", "init_args": {"every_n_train_steps": 1}}]
    Path("overlay.yaml").write_text(json.dumps({"trainer": {"callbacks": callbacks}}))
    arguments += ["--config", "overlay.yaml", "--model.init_args.max_nonfinite_steps", "2"]
    for _ in range(2):  # the second start does not begin with ruined weights
        assert exit_code(*arguments) == 2
        assert "3 in a row is more than max_nonfinite_steps=2. Checkpoints with a finite" in capsys.readouterr().err
        names = {path.name for path in Path("runs/digits/stage1/fq_dual/checkpoints").iterdir()}
        assert "last.ckpt" not in names and "ruined.ckpt" in names
