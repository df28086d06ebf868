"""The checkpoints of a run."""

import shutil
from math import isfinite
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch.distributed.checkpoint.api import CheckpointException

from artifacts.checkpoint_files import (
    BEST,
    LAST,
    NEXT,
    PREVIOUS,
    SyncedCheckpointIO,
    check_writable,
    copy,
    fault,
    move,
    sync,
)
from polytoken.errors import RunError, UserError


class LastCheckpoint(Checkpoint):
    """Writes `last.ckpt` every so many steps, before each validation, and after the very last step.

    The one before stays as `previous.ckpt`: the command line goes on from it if the last one cannot be read. A run that
    is stopped while it validates loses no step, and the best checkpoint is a second name of the last one.

    ModelCheckpoint(save_last=True) would leave out the last step unless it divides, number a second file after a
    resume, write through the temporary directory, and warn at length about manual optimization.

    Args:
        every_n_train_steps: Optimizer steps between two writes.
        dirpath: Directory of the checkpoints; the command line fills in `<run>/checkpoints`.
        keep_every_n_train_steps: Optimizer steps between two checkpoints that stay, as `step_<n>.ckpt`.
        monitor: A validation metric by which `best.ckpt` is chosen, e.g. `val/psnr`.
        mode: Whether the best value is the smallest or the largest.
    """

    def __init__(
        self,
        every_n_train_steps: int = 1000,
        dirpath: str | None = None,
        keep_every_n_train_steps: int | None = None,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "min",
    ) -> None:
        for name, steps in (
            ("every_n_train_steps", every_n_train_steps),
            ("keep_every_n_train_steps", keep_every_n_train_steps),
        ):
            if steps is not None and steps < 1:
                raise UserError(f"{name} is {steps}; it must be at least 1.")
        self.every_n_train_steps = every_n_train_steps
        self.dirpath = dirpath
        self.keep_every_n_train_steps = keep_every_n_train_steps
        self.monitor = monitor
        self.mode = mode
        self._best: float | None = None
        self._saved = False  # by this process
        self._step = self._step_in_file = 0  # no step is taken yet, so there is nothing to save

    @property
    def last_model_path(self) -> str:
        """The file that is written."""
        return str(self._directory / LAST)

    def holds(self, step: int) -> bool:
        """Whether `last.ckpt` was written at this step."""
        return step == self._step_in_file

    def state_dict(self) -> dict[str, Any]:
        """The best value so far."""
        return {"best": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best value."""
        self._best = state_dict.get("best")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Fall back to the trainer's directory, and see to it that it can be written."""
        self.dirpath = trainer.strategy.broadcast(self.dirpath or str(Path(trainer.default_root_dir) / "checkpoints"))
        if stage == "fit" and not trainer.fast_dev_run:
            if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
                trainer.strategy.checkpoint_io = SyncedCheckpointIO()
            if trainer.is_global_zero:
                check_writable(self._directory)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take note of the step that a resumed run starts from: it is in a file already."""
        self._step = self._step_in_file = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if it is time, or if this was the last step: here, so that a longer max_steps can go on from it."""
        # Batches that only accumulate gradients leave the step where it was, and their gradients are in no checkpoint.
        step, before = trainer.global_step, self._step
        self._step = step
        if step == before or trainer.fast_dev_run:
            return
        keep = self.keep_every_n_train_steps is not None and step % self.keep_every_n_train_steps == 0
        if step % self.every_n_train_steps == 0 or keep or step == trainer.max_steps or _validates_next(trainer):
            self.save(trainer)
        if keep and trainer.is_global_zero:
            copy(self._directory / LAST, self._directory / f"step_{step}.ckpt")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the last checkpoint as the best one, if the validation after it says so."""
        if self.monitor is None or trainer.state.fn != "fit" or trainer.sanity_checking or trainer.fast_dev_run:
            return
        value = trainer.callback_metrics.get(self.monitor)
        if value is None:
            known = ", ".join(sorted(trainer.callback_metrics)) or "none"
            raise UserError(f"monitor is '{self.monitor}', which validation does not log; it logs {known}")
        if self.holds(trainer.global_step) and self._is_better(float(value)):
            self._best = float(value)
            if trainer.is_global_zero:
                copy(self._directory / LAST, self._directory / BEST)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what a run ended by max_epochs or by an early stop has reached."""
        self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        """Write `last.ckpt` unless it holds this step already; all ranks must call it together.

        Raises:
            RuntimeError: if the disk does not take it; the checkpoints that were there are there still.
        """
        if trainer.fast_dev_run or self.holds(trainer.global_step):
            return
        # weights_only said outright, or Lightning remarks on it: here it means leaving the optimizers out
        try:
            trainer.save_checkpoint(self._directory / NEXT, weights_only=False)
        except CheckpointException as error:  # of a sharded one; it is no Exception
            reasons = "; ".join(f"rank {rank}: {failure[0]}" for rank, failure in error.failures.items())
            if trainer.is_global_zero:
                shutil.rmtree(self._directory / NEXT, ignore_errors=True)
            raise RunError(
                f"the checkpoint {self._directory / NEXT} cannot be written: {reasons}. What was saved before is "
                "whole: make room or make the directory writable, and start the run again"
            ) from error
        if trainer.is_global_zero:
            self._put_in_place()
        self._step_in_file = trainer.global_step

    def _put_in_place(self) -> None:
        """Make the next checkpoint the last one, and the last one the previous: one of them is whole at any moment."""
        following, last = self._directory / NEXT, self._directory / LAST
        for part in following.glob("*"):  # of a sharded one; a file is on the disk when it has its name
            sync(part)
        if last.exists() and (self._saved or fault(last) is None):  # else the run goes on from the previous one
            copy(last, self._directory / PREVIOUS)
        self._saved = True
        move(following, last)
        sync(self._directory)

    @property
    def _directory(self) -> Path:
        return Path(self.dirpath or "checkpoints")

    def _is_better(self, value: float) -> bool:
        if self._best is None or not isfinite(value):
            return isfinite(value)
        return value < self._best if self.mode == "min" else value > self._best


def _validates_next(trainer: Trainer) -> bool:
    """Whether the trainer validates after this batch, by its own count; clocks of ranks may differ."""
    by_the_clock = trainer._val_check_time_interval is not None
    return not by_the_clock and trainer.fit_loop.epoch_loop._should_check_val_fx(trainer.fit_loop._data_fetcher)
