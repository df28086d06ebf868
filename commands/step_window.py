"""Callback that times some steps of a run, traces others, and ends the run."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from commands.trace import tracing


class StepsTracedError(Exception):
    """Ends a run after its traced steps: callbacks that complete the work of a whole run must not begin."""


class StepWindow(Callback):
    """Lets some steps warm up, times as many, traces as many, and ends the run by an exception.

    A step begins where the one before has ended, so that it contains the wait for its batch.

    Args:
        steps: optimizer steps of a fit, or batches of a prediction, of each of the three parts.
        path: of the trace.
    """

    def __init__(self, steps: int, path: Path) -> None:
        self.steps = steps
        self.path = path
        self.milliseconds = 0.0  # of a timed step
        self._first = 0  # step at which the run started
        self._began = 0.0
        self._tracing = ExitStack()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._first = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self._advance(trainer.global_step - self._first)

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        self._advance(batch_idx + 1)

    def _advance(self, done: int) -> None:
        """Go on to the next part, if `done` steps end one."""
        if done >= self.steps and not self._began:
            wait()
            self._began = time.perf_counter()
        elif done >= 2 * self.steps and not self.milliseconds:
            wait()
            self.milliseconds = (time.perf_counter() - self._began) * 1e3 / self.steps
            self._tracing.enter_context(tracing(self.path))
        elif done >= 3 * self.steps:
            self._tracing.close()
            raise StepsTracedError


def wait() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
