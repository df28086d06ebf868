"""The checkpoint from which a run goes on."""

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint


class LastCheckpoint(Checkpoint):
    """Writes `last.ckpt` every so many steps, and after the very last one.

    ModelCheckpoint(save_last=True) would leave out the last step unless it divides, number a second file after a
    resume, and warn at length about manual optimization. To keep the best as well, add a ModelCheckpoint beside this.

    Args:
        every_n_train_steps: Optimizer steps between two writes.
        dirpath: Directory of `last.ckpt`; the command line fills in `<run>/checkpoints`.
    """

    def __init__(self, every_n_train_steps: int = 1000, dirpath: str | None = None) -> None:
        if every_n_train_steps < 1:
            raise ValueError(f"every_n_train_steps is {every_n_train_steps}; it must be at least 1.")
        self.every_n_train_steps = every_n_train_steps
        self.dirpath = dirpath
        self._step_in_file = 0  # no step is taken yet, so there is nothing to save

    @property
    def last_model_path(self) -> str:
        """The file that is written."""
        return str(Path(self.dirpath or "checkpoints") / "last.ckpt")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Fall back to the trainer's directory."""
        self.dirpath = trainer.strategy.broadcast(self.dirpath or str(Path(trainer.default_root_dir) / "checkpoints"))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take note of the step that a resumed run starts from: it is in a file already."""
        self._step_in_file = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if it is time, or if this was the last step: here, so that a longer max_steps can go on from it."""
        step = trainer.global_step
        if step % self.every_n_train_steps == 0 or step == trainer.max_steps:
            self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what a run ended by max_epochs or by an early stop has reached."""
        self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        # Batches that only accumulate gradients leave the step where it was: there is nothing new to save.
        if not trainer.fast_dev_run and trainer.global_step != self._step_in_file:
            unfinished = Path(f"{self.last_model_path}.part")
            # weights_only said outright, or Lightning remarks on it: here it means leaving the optimizers out
            trainer.save_checkpoint(unfinished, weights_only=False)
            if trainer.is_global_zero and unfinished.is_file():
                unfinished.replace(self.last_model_path)  # beside it, so that this is one step on any file system
            self._step_in_file = trainer.global_step
