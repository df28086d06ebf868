"""The progress bar of a run whose length is max_steps."""

from __future__ import annotations

import lightning.pytorch as pl
from lightning.pytorch.callbacks import RichProgressBar


class StepProgressBar(RichProgressBar):
    """The rich bar over an epoch, and beside it the step out of ``max_steps``: steps are what ends our runs."""

    def get_metrics(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """What stands beside the bar."""
        return {"step": f"{trainer.global_step}/{trainer.max_steps}", **super().get_metrics(trainer, pl_module)}

    def _get_train_description(self, current_epoch: int) -> str:
        # Lightning would append the number of epochs, which is endless here and shows as /-2.
        return f"Epoch {current_epoch}".ljust(len(self.validation_description))
