"""The checkpoints of a run: the last, the previous and the best."""

from __future__ import annotations

import logging
import shutil
import time
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.tensor import DTensor

from artifacts.checkpoint_files import BEST, LAST, NEXT, PREVIOUS, RUINED, check_writable, copy, fault, move, seal, sync
from artifacts.lock import check_in_place
from polytoken import records
from polytoken.errors import RunError, UserError
from polytoken.files import real_path, remove
from polytoken.guard import NonFiniteError, NonFiniteGuard
from polytoken.layout import CHECKPOINTS
from polytoken.ranges import above, at_least

logger = logging.getLogger(__name__)

BEST_VALUE = "best.json"
CLOCK_STEPS = 10  # optimizer steps between two broadcasts of rank 0's clock, if there are several ranks


@dataclass(frozen=True)
class Best:
    """Content of `best.json`: the metric that chose `best.ckpt`, and its value there."""

    monitor: str
    value: float


class LastCheckpoint(Checkpoint):
    """Writes `last.ckpt` by step, by time, at the last update before each validation, and after the last step.

    The checkpoint before it stays as `previous.ckpt`, from which the command line resumes if the last one cannot be
    read. Saving before a validation means that a run killed while it validates loses no step, and that the best
    checkpoint is a second name of the last one. A run that resumes from such a checkpoint validates first. If no step
    is left, Lightning starts no training; the validation that follows a fit takes its place, and chooses the best too.

    `previous.ckpt` holds weights that have since given a finite loss; those of `last.ckpt` may not have been used yet.
    Nothing is written while steps are left out as not finite. If the run ends so, a last checkpoint that has given no
    finite loss becomes `ruined.ckpt`, and the previous one takes its place.

    Lightning's ModelCheckpoint(save_last=True) omits the last step unless it divides, numbers a second file after a
    resume, writes through the temporary directory, and has no atomic replacement of `last.ckpt`.

    Args:
        every_n_train_steps: Optimizer steps between two checkpoints.
        dirpath: Directory of the checkpoints; the command line fills in `<run>/checkpoints`.
        every_minutes: Minutes after the last checkpoint until the next one, by the clock of rank 0; None saves
            by step alone. Several ranks read that clock every CLOCK_STEPS steps, so that they save at the same one.
        monitor: Validation metric that chooses `best.ckpt`, e.g. `val/psnr`.
        mode: Whether the best value is the smallest or the largest.
    """

    def __init__(
        self,
        every_n_train_steps: int = 1000,
        dirpath: str | None = None,
        every_minutes: float | None = 10.0,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "min",
    ) -> None:
        at_least(1, self, every_n_train_steps=every_n_train_steps)
        above(0, self, every_minutes=every_minutes)
        self.every_n_train_steps = every_n_train_steps
        self.dirpath = dirpath
        self.every_minutes = every_minutes
        self.monitor = monitor
        self.mode = mode
        self._fits = False
        self._saved = False  # by this process
        self._read = False  # last.ckpt is where this process started
        self._validates = False  # a validation of the current step is due or under way
        self._proven = False  # the weights of last.ckpt have given a finite loss in this process
        self._due = False
        self._guard: NonFiniteGuard | None = None
        self._saved_at = 0.0  # reading of time.monotonic
        self._step = self._step_in_file = 0  # no step is taken yet, so there is nothing to save

    @property
    def last_model_path(self) -> str:
        """The path of `last.ckpt`."""
        return str(self.directory / LAST)

    @property
    def step(self) -> int:
        """The step that `last.ckpt` holds."""
        return self._step_in_file

    def holds(self, step: int) -> bool:
        """True if `last.ckpt` was written at this step."""
        return step == self._step_in_file

    def state_dict(self) -> dict[str, Any]:
        return {"validates": self._validates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._validates = bool(state_dict.get("validates"))

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Agree on the directory; raises RunError if a fit cannot write to it."""
        self.dirpath = trainer.strategy.broadcast(self.dirpath or str(Path(trainer.default_root_dir) / CHECKPOINTS))
        self._fits = self._fits or stage == "fit"  # a validation follows the fit
        if stage == "fit" and not trainer.fast_dev_run and trainer.is_global_zero:
            check_writable(self.directory)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the step that a resumed run starts from, which a file holds; repeat the validation that was due."""
        self._step = self._step_in_file = trainer.global_step
        self._saved_at = time.monotonic()
        self._read = self._starts_from_last(trainer)
        self._guard = getattr(pl_module, "guard", None)
        self._proven = self._due = False
        if trainer.ckpt_path is None and trainer.is_global_zero and not trainer.fast_dev_run:
            remove(self.directory / BEST_VALUE)  # of a run that starts over
        if self._read and self._validates:
            _validate(trainer)
        self._validates = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if this step is due; the last step is saved here too, so that a longer max_steps can resume from it."""
        # Batches that only accumulate gradients do not advance the step, and no checkpoint holds their gradients.
        step, before = trainer.global_step, self._step
        self._step = step
        if step == before or trainer.fast_dev_run:
            return
        if not self._is_rejecting:  # the weights before this update are at least as new as those of the file
            self._proven = True
        by_step = step % self.every_n_train_steps == 0 or step == trainer.max_steps
        self._validates = _validates_next(trainer)
        batches = getattr(pl_module, "accumulate_steps", trainer.accumulate_grad_batches)  # a tokenizer's own
        validates = self._validates or _validates_between(trainer, batches)
        self._due = self._due or by_step or validates or self._time_is_up(trainer)
        if self._due:
            self.save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the last checkpoint as the best one if its validation, in a fit or after it, is the best so far."""
        after_fit = self._fits and trainer.ckpt_path is None  # of its weights, not of a file
        if trainer.sanity_checking or (trainer.state.fn == "validate" and not after_fit):
            return
        self._validates = False
        if self.monitor is None or trainer.fast_dev_run:
            return
        value = trainer.callback_metrics.get(self.monitor)
        if value is None:
            known = ", ".join(sorted(trainer.callback_metrics)) or "none"
            raise UserError(f"monitor is '{self.monitor}', which validation does not log; it logs {known}")
        saved = trainer.global_step > 0 and self.holds(trainer.global_step)
        if trainer.is_global_zero and saved and self._is_better(float(value)):
            copy(self.directory / LAST, self.directory / BEST)
            records.write(self.directory / BEST_VALUE, Best(self.monitor, float(value)))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the last step of a run that max_epochs or an early stop has ended.

        A single step that was left out may be due to its batch, on which every restart would end again: the weights are
        saved with a warning, and `previous.ckpt` stays the last one that has given a finite loss.

        Raises:
            RunError: The weights are not finite, or several losses in a row were not.
        """
        single = self._guard is not None and self._guard.in_a_row == 1
        self.save(trainer, although_rejecting=single)
        if trainer.fast_dev_run or self.holds(trainer.global_step):
            if single and trainer.is_global_zero:
                logger.warning("the last step was left out as not finite: %s holds the weights before it", LAST)
            return
        if trainer.is_global_zero:
            self._withdraw()
        raise RunError(
            f"the run ends at step {trainer.global_step} with weights whose loss is not finite, so they are not saved: "
            f"train under another run.stage with a lower learning rate, from {self.directory / LAST} if it exists"
        )

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the step of a run that resumes after its last one: Lightning starts no training."""
        if self._starts_from_last(trainer):
            self._step_in_file = trainer.global_step

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Withdraw the last checkpoint if too many steps were not finite, and its weights have never given a loss."""
        if isinstance(exception, NonFiniteError) and trainer.is_global_zero and not trainer.fast_dev_run:
            self._withdraw()

    def save(self, trainer: Trainer, although_rejecting: bool = False) -> None:
        """Write `last.ckpt` unless it holds this step already; all ranks must call it together.

        Nothing is written while steps are left out as not finite, or if a weight is not.

        Args:
            trainer: The trainer.
            although_rejecting: Write finite weights even if the last step was left out.

        Raises:
            RunError: The disk refuses the checkpoint; the earlier ones are unchanged.
        """
        if trainer.fast_dev_run or self.holds(trainer.global_step) or not _is_finite(trainer):
            return
        if self._is_rejecting and not although_rejecting:
            return
        check_in_place(self.directory.parent)
        # weights_only is explicit to avoid Lightning's warning; here it means "omit the optimizer states"
        try:
            trainer.save_checkpoint(self.directory / NEXT, weights_only=False)
        except CheckpointException as error:  # raised by sharded saves; derives from BaseException
            reasons = "; ".join(f"rank {rank}: {failure[0]}" for rank, failure in error.failures.items())
            if trainer.is_global_zero:
                shutil.rmtree(self.directory / NEXT, ignore_errors=True)
            raise RunError(
                f"the checkpoint {self.directory / NEXT} cannot be written: {reasons}. What was saved before is "
                "whole: make room or make the directory writable, and start the run again"
            ) from error
        if trainer.is_global_zero:
            self._put_in_place()
        self._step_in_file = trainer.global_step
        self._saved_at = time.monotonic()
        self._proven = self._due = False

    @property
    def _is_rejecting(self) -> bool:
        """True if the last step was left out as not finite."""
        return self._guard is not None and self._guard.in_a_row > 0

    def _starts_from_last(self, trainer: Trainer) -> bool:
        """True if the trainer has read `last.ckpt`."""
        read = trainer.ckpt_path
        return read is not None and real_path(read) == real_path(self.directory / LAST)

    def _withdraw(self) -> None:
        """Put the previous checkpoint in the place of a last one whose weights have given no finite loss."""
        last, previous, ruined = (self.directory / name for name in (LAST, PREVIOUS, RUINED))
        if self._proven or not (self._saved or self._read) or not last.exists():
            return
        if not self._saved and not previous.exists():  # the only one
            return
        move(last, ruined)
        for kept in self.directory.glob(f"step_{self._step_in_file}.ckpt"):  # its second name
            remove(kept)
        if previous.exists():
            copy(previous, last)
        place = "the one before takes its place" if previous.exists() else "the run starts over"
        logger.warning("the weights of %s have given no finite loss: it is %s now, and %s", last, ruined, place)

    def deliver(self) -> list[Path]:
        """The last checkpoint of a fit."""
        return [self.directory / LAST] if self._fits else []

    def _time_is_up(self, trainer: Trainer) -> bool:
        """True if every_minutes have passed since the last save on rank 0; all ranks get the same answer."""
        if self.every_minutes is None:
            return False
        passed = time.monotonic() - self._saved_at >= 60 * self.every_minutes
        if trainer.world_size == 1:
            return passed
        # one broadcast in CLOCK_STEPS steps: of an object, it takes several collectives, and the host waits for each
        return trainer.global_step % CLOCK_STEPS == 0 and trainer.strategy.broadcast(passed)

    def _put_in_place(self) -> None:
        """Make the next checkpoint the last one, and the last one the previous: one of them is whole at any moment."""
        following, last = self.directory / NEXT, self.directory / LAST
        seal(following)
        for part in following.glob("*") if following.is_dir() else (following,):  # a sharded one is a directory
            sync(part)
        # else previous.ckpt is the better one
        if last.exists() and self._proven and (self._saved or fault(last) is None):
            copy(last, self.directory / PREVIOUS)
        self._saved = True
        move(following, last)
        sync(self.directory)

    @property
    def directory(self) -> Path:
        """Directory of the checkpoints."""
        return Path(self.dirpath or CHECKPOINTS)

    def _is_better(self, value: float) -> bool:
        """True if this value is better than that of `best.ckpt`; a file, since `last.ckpt` precedes its validation."""
        best = records.read_derived(self.directory / BEST_VALUE, Best) if (self.directory / BEST).exists() else None
        if best is None or best.monitor != self.monitor or not isfinite(value):
            return isfinite(value)
        return value < best.value if self.mode == "min" else value > best.value


def _is_finite(trainer: Trainer) -> bool:
    """True if all weights of all ranks are finite; reads one number from the device."""
    weights = [weight.detach() for weight in trainer.lightning_module.parameters()]
    parts = [weight.to_local() if isinstance(weight, DTensor) else weight for weight in weights]
    finite = torch.stack([part.isfinite().all() for part in parts]).all() if parts else True
    return trainer.strategy.reduce_boolean_decision(bool(finite))


def _validates_next(trainer: Trainer) -> bool:
    """True if the trainer validates after this batch, by step; by time, the clocks of ranks may differ."""
    # private: no hook precedes a validation with the raw weights in place, and the rule (epochs, fractions, iterable
    # data, early stopping) is too long to repeat
    by_time = trainer._val_check_time_interval is not None
    return not by_time and trainer.fit_loop.epoch_loop._should_check_val_fx(trainer.fit_loop._data_fetcher)


def _validates_between(trainer: Trainer, batches: int) -> bool:
    """True if the trainer validates by step within the `batches` batches that the next update may take."""
    interval = trainer.val_check_batch
    by_step = trainer.enable_validation and trainer.check_val_every_n_epoch is None and isinstance(interval, int)
    return by_step and 0 < -(trainer.fit_loop.epoch_loop.total_batch_idx + 1) % interval < batches


def _validate(trainer: Trainer) -> None:
    """Run the validation that Lightning skips, as if it were done, in a fit that resumes from before it."""
    loop = trainer.fit_loop.epoch_loop.val_loop  # private ways: a trainer cannot validate inside of a fit
    loop.restarting, trainer.validating = False, True
    loop.run()
    trainer.training = True
