"""A picture of validation images over their reconstructions."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import numpy as np
from torch import Tensor

from callbacks.measure.plots import image_table, publish
from polytoken.metrics.images import to_uint8


class ReconstructionGrid(pl.Callback):
    """Draws originals in one row and their reconstructions in the row below; rank zero's first validation images.

    Writes ``reconstructions.png`` into the run's directory after each validation, and the same picture to TensorBoard.

    Args:
        columns: images a row.
        rows: pairs of rows.
        pixels: least height of an image in the picture; small images are enlarged without smoothing.
    """

    def __init__(self, columns: int = 8, rows: int = 2, pixels: int = 64) -> None:
        self.columns = columns
        self.rows = rows
        self.pixels = pixels
        self._originals: list[Tensor] = []
        self._reconstructions: list[Tensor] = []

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start collecting anew."""
        self._originals, self._reconstructions = [], []

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: dict[str, Any],
        batch: dict[str, Tensor],
        *_: Any,
    ) -> None:
        """Keep images until the picture is full, spread over the validation set."""
        wanted = self.columns * self.rows
        batches = trainer.num_val_batches[0] if trainer.num_val_batches else 1  # type: ignore[index]
        share = max(1, -(-wanted // max(1, int(batches))))
        if trainer.is_global_zero and len(self._originals) < wanted:
            stride = max(1, len(batch["image"]) // share)
            self._originals += to_uint8(batch["image"][::stride][:share]).cpu().unbind()
            self._reconstructions += to_uint8(outputs["reconstruction"][::stride][:share]).cpu().unbind()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the picture."""
        if not self._originals:
            return
        publish(trainer, "reconstructions", self._picture())

    def _picture(self) -> np.ndarray:
        wanted = self.columns * self.rows
        rows = []
        for start in range(0, min(len(self._originals), wanted), self.columns):
            stop = min(start + self.columns, wanted)
            rows += [self._originals[start:stop], self._reconstructions[start:stop]]
        return image_table(rows, row_labels=["original", "reconstruction"] * (len(rows) // 2), pixels=self.pixels)
