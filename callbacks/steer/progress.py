"""Progress bar in steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import lightning.pytorch as pl
from lightning.pytorch.callbacks import RichProgressBar

from callbacks.steer.text_progress import shows_bar

if TYPE_CHECKING:
    from rich.progress import TaskID


class StepProgressBar(RichProgressBar):
    """The rich bar over the steps to ``max_steps``, which ends our runs, with the time that is left.

    Nothing is drawn where the output is no terminal: :class:`TextProgress` prints lines there.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if not shows_bar(trainer):
            self.disable()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add the bar once: an epoch means nothing to a run in steps."""
        if self.progress is not None and self.train_progress_bar_id is None:
            self._initialize_train_progress_bar_id()

    # private, since no public hook sets these: Lightning's bar counts the batches of an epoch

    def _initialize_train_progress_bar_id(self) -> None:
        assert self.progress is not None
        total = self.trainer.max_steps if self.trainer.max_steps > 0 else float("inf")
        done = self.trainer.global_step  # a resumed run begins there
        self.train_progress_bar_id = self.progress.add_task("Training", total=total, completed=done)

    def _update(self, progress_bar_id: TaskID | None, current: int, visible: bool = True, hard: bool = False) -> None:
        if progress_bar_id is not None and progress_bar_id == self.train_progress_bar_id:
            current = self.trainer.global_step
        super()._update(progress_bar_id, current, visible, hard)
