"""Plot of validation images over their reconstructions."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from torch import Tensor

from callbacks.measure.measurement import Measurement
from callbacks.measure.plots import image_table, publish
from polytoken.metrics.images import to_uint8
from polytoken.ranges import at_least
from polytoken.specs import Encoding


class ReconstructionGrid(Measurement):
    """Draws the first validation images of rank zero, and their reconstructions in the row below.

    Writes ``reconstructions.png`` into the run's directory after each validation, and the same plot to TensorBoard.

    Args:
        columns: images per row.
        rows: pairs of rows.
        pixels: minimum height of an image in the plot; small images are enlarged without smoothing.
    """

    def __init__(self, columns: int = 8, rows: int = 2, pixels: int = 64) -> None:
        at_least(1, self, columns=columns, rows=rows, pixels=pixels)
        self.columns = columns
        self.num_rows = rows
        self.pixels = pixels

    def begin(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._originals: list[Tensor] = []
        self._reconstructions: list[Tensor] = []
        self._wanted = self.columns * self.num_rows if trainer.is_global_zero else 0
        batches = trainer.num_val_batches[0] if trainer.num_val_batches else 1  # type: ignore[index]
        self._share = max(1, -(-self._wanted // max(1, int(batches))))  # spreads the images over the set

    def measure(self, images: Tensor, reconstruction: Tensor, labels: Tensor, encoding: Encoding) -> None:
        if len(self._originals) < self._wanted:
            stride = max(1, len(images) // self._share)
            self._originals += to_uint8(images[::stride][: self._share]).cpu().unbind()
            self._reconstructions += to_uint8(reconstruction[::stride][: self._share]).cpu().unbind()

    def results(self) -> dict[str, Any]:
        return {}

    def draw(self, trainer: pl.Trainer) -> None:
        rows = []
        for start in range(0, min(len(self._originals), self._wanted), self.columns):
            stop = min(start + self.columns, self._wanted)
            rows += [self._originals[start:stop], self._reconstructions[start:stop]]
        if rows:
            labels = ["original", "reconstruction"] * (len(rows) // 2)
            publish(trainer, "reconstructions", image_table(rows, row_labels=labels, pixels=self.pixels))
