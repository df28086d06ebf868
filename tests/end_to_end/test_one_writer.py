"""Runs that others write to, that nothing saves, that are deleted, or that are only tried."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from lightning.pytorch import Callback, Trainer

from artifacts import lock
from callbacks.measure.plots import publish
from tests.artifacts.test_lock import held_elsewhere
from tests.support.commands import TOY, exit_code

RUN = Path("runs/default/toy")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["cli.py"])


def test_a_second_run_in_a_directory_is_refused(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    with held_elsewhere(RUN) as child:
        assert exit_code("fit", "--config", TOY) == 2
        assert f"{RUN} is in use by process {child} on " in capsys.readouterr().err
        assert [path.name for path in RUN.iterdir()] == [".lock"]
        assert exit_code("fit", "--config", TOY, "--run.stage", "other", "--trainer.max_steps", "1") == 0
        assert not lock._held
        monkeypatch.setattr("lightning.pytorch.utilities.rank_zero_only.rank", 1)  # another rank of the same run
        assert exit_code("fit", "--config", TOY, "--trainer.max_steps", "1") == 0


class Deletes(Callback):
    """Deletes the run's directory."""

    def __init__(self, in_validation: bool) -> None:
        self.in_validation = in_validation

    def on_train_batch_start(self, trainer: Trainer, *_: object) -> None:
        if trainer.global_step == 1 and not self.in_validation:
            shutil.rmtree(trainer.default_root_dir)

    def on_validation_start(self, trainer: Trainer, *_: object) -> None:
        if trainer.state.fn == "validate" and self.in_validation:
            shutil.rmtree(trainer.default_root_dir)


@pytest.mark.parametrize("in_validation", [False, True])
def test_a_directory_that_is_deleted_during_the_run(in_validation: bool, capsys: pytest.CaptureFixture) -> None:
    callback = {"class_path": f"{__name__}.Deletes", "init_args": {"in_validation": in_validation}}
    assert exit_code("fit", "--config", TOY, "--trainer.callbacks+", json.dumps(callback)) == 2
    assert "was deleted or replaced while this run was writing to it" in capsys.readouterr().err
    assert not (RUN / "checkpoints").exists()


def replaced(callbacks: list[str], **trainer: object) -> list[str]:
    """An overlay whose list replaces the callbacks of base.yaml."""
    listed = [{"class_path": f"callbacks.{name}"} for name in callbacks]
    Path("overlay.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": listed, **trainer}}))
    return ["fit", "--config", TOY, "--config", "overlay.yaml", "--trainer.max_steps", "1"]


def test_a_run_that_nothing_saves_is_refused(capsys: pytest.CaptureFixture) -> None:
    assert exit_code(*replaced(["StepProgressBar"])) == 2
    assert "nothing saves this run so that it could resume: it has no callbacks.LastCheckpoint (a list under" in (
        capsys.readouterr().err
    )
    assert not (RUN / "config.yaml").exists()


def test_what_else_a_list_of_callbacks_drops_is_named(recwarn: pytest.WarningsRecorder) -> None:
    assert exit_code(*replaced(["LastCheckpoint", "RandomState"], logger=False)) == 0
    said = [str(warning.message) for warning in recwarn.list]
    assert any(text.startswith("this run has no callbacks.Requeue, callbacks.MetricsFile: a list") for text in said)
    assert any("no TensorBoardLogger (trainer.logger), so the report shows no curves" in text for text in said)
    recwarn.clear()
    assert exit_code(*replaced([], enable_checkpointing=False, limit_val_batches=0)) == 0


class Draws(Callback):
    """Writes a picture into the run's directory, as measurements do."""

    def on_validation_end(self, trainer: Trainer, *_: object) -> None:
        publish(trainer, "usage", np.full((4, 4, 3), trainer.global_step, np.uint8))


def test_a_trial_changes_nothing_and_does_not_resume() -> None:
    draws = ("--trainer.callbacks+", json.dumps({"class_path": f"{__name__}.Draws"}))
    assert exit_code("fit", "--config", TOY, *draws) == 0
    assert (RUN / "usage.png").exists()
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    for subcommand in ("fit", "validate"):
        assert exit_code(subcommand, "--config", TOY, *draws, "--trainer.fast_dev_run", "2") == 0
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before
