"""Callback that keeps checkpoints along a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from artifacts.checkpoint_files import LAST, copy
from callbacks.checkpoint.last_checkpoint import LastCheckpoint
from polytoken.errors import UserError
from polytoken.loading import GLOBAL_STEP
from polytoken.ranges import at_least


class KeptCheckpoints(Checkpoint):
    """Keeps a checkpoint every n steps as `step_<n>.ckpt`, next to those of LastCheckpoint, which writes them.

    `python -m commands.curve` measures them. They are hard links where the file system has them. A recipe adds this
    callback to the list of base.yaml, whose LastCheckpoint it could not change.

    Args:
        every_n_train_steps: Optimizer steps between two kept checkpoints.
    """

    def __init__(self, every_n_train_steps: int) -> None:
        at_least(1, self, every_n_train_steps=every_n_train_steps)
        self.every_n_train_steps = every_n_train_steps
        self._step = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the callback that writes.

        Raises:
            UserError: If there is none.
        """
        last = next((callback for callback in trainer.callbacks if isinstance(callback, LastCheckpoint)), None)  # type: ignore[attr-defined]
        if last is None:
            raise UserError("KeptCheckpoints saves by LastCheckpoint: add callbacks.LastCheckpoint before it")
        self._last = last

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Note the step that a fit resumes from, and keep its checkpoint if the earlier process did not."""
        if trainer.state.fn != "fit":
            return
        self._step = checkpoint[GLOBAL_STEP]
        if self._is_due and trainer.ckpt_path and trainer.is_global_zero and not self._path.exists():
            copy(Path(trainer.ckpt_path), self._path)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save and keep if this step is due; batches that only accumulate gradients do not advance the step."""
        before, self._step = self._step, trainer.global_step
        if self._step == before or not self._is_due or trainer.fast_dev_run:
            return
        self._last.save(trainer)
        if trainer.is_global_zero and self._last.holds(self._step):  # no weights are saved whose loss is not finite
            copy(self._last.directory / LAST, self._path)

    @property
    def _is_due(self) -> bool:
        return self._step > 0 and self._step % self.every_n_train_steps == 0

    @property
    def _path(self) -> Path:
        return self._last.directory / f"step_{self._step}.ckpt"
