"""Callbacks that kill the process, or send it a signal."""

import os
import signal
import time
from pathlib import Path

import lightning.pytorch as pl

from callbacks.steer.requeue import Requeue


class KillAfter(pl.Callback):
    """Sends a signal to one rank after ``step`` updates, at the end of the batch or in the validation after it."""

    def __init__(self, step: int, name: str = "SIGKILL", rank: int = 0, in_validation: bool = False) -> None:
        self.step = step
        self.name = name
        self.rank = rank
        self.in_validation = in_validation

    def on_train_batch_end(self, trainer: pl.Trainer, *_) -> None:
        if not self.in_validation:
            self._signal(trainer)

    def on_validation_batch_start(self, trainer: pl.Trainer, *_) -> None:
        if self.in_validation:
            self._signal(trainer)

    def _signal(self, trainer: pl.Trainer) -> None:
        if trainer.global_step == self.step and trainer.global_rank == self.rank:
            os.kill(os.getpid(), signal.Signals[self.name])


class PauseAfter(pl.Callback):
    """Pauses some ``stages`` after ``step`` updates or one batch of a prediction, once, until a signal arrives.

    The file ``paused`` in the run's directory marks the pause for the sender of the signal.
    """

    SECONDS = 600

    def __init__(self, step: int, stages: list[str]) -> None:
        self.step = step
        self.stages = stages

    def on_train_batch_end(self, trainer: pl.Trainer, *_) -> None:
        if trainer.global_step == self.step:
            self._pause(trainer)

    def on_predict_batch_end(self, trainer: pl.Trainer, *_) -> None:
        self._pause(trainer)

    def _pause(self, trainer: pl.Trainer) -> None:
        said = Path(trainer.default_root_dir) / "paused"
        here = trainer.is_global_zero and trainer.default_root_dir.endswith(tuple(self.stages))
        if not here or said.exists():
            return
        said.touch()
        (requeue,) = (callback for callback in trainer.callbacks if isinstance(callback, Requeue))
        end = time.monotonic() + self.SECONDS
        while requeue._received is None:
            assert time.monotonic() < end, f"no signal came within {self.SECONDS} s"
            time.sleep(0.2)


class KillInPrediction(pl.Callback):
    """SIGKILL once a rank has predicted ``batches`` batches."""

    def __init__(self, batches: int) -> None:
        self.batches = batches

    def on_predict_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_) -> None:
        self.batches -= 1
        if not self.batches:
            os.kill(os.getpid(), signal.SIGKILL)
