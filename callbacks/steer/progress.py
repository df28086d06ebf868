"""Progress bar in steps."""

from __future__ import annotations

import lightning.pytorch as pl
from lightning.pytorch.callbacks import RichProgressBar


class StepProgressBar(RichProgressBar):
    """The rich bar of an epoch, with the step out of ``max_steps``, which ends our runs."""

    def get_metrics(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Add the step."""
        return {"step": f"{trainer.global_step}/{trainer.max_steps}", **super().get_metrics(trainer, pl_module)}

    def _get_train_description(self, current_epoch: int) -> str:
        # private, since no public hook sets this text: Lightning appends the number of epochs, which is endless (/-2)
        return f"Epoch {current_epoch}".ljust(len(self.validation_description))
