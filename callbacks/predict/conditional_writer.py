"""Writer of images that were generated around reference images."""

from __future__ import annotations

import lightning.pytorch as pl
import numpy as np

from callbacks.measure.plots import image_table
from callbacks.predict.sample_writer import SampleWriter
from polytoken.images import to_uint8


class ConditionalWriter(SampleWriter):
    """SampleWriter for a SamplingModule with forced sub-codes: ``grid.png`` has a row for each reference.

    A row shows the reference, what its forced sub-codes decode to alone, and the image of each class.

    Args:
        output: the directory; None is that of the run.
        grid_rows: references in the grid, evenly chosen.
        grid_columns: classes in the grid, the first ones.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._module = pl_module

    def _grid(self) -> np.ndarray:
        references, classes = self._data.references, self._labels[: len(self._data.classes)][: self.grid_columns]
        chosen = np.unique(np.linspace(0, len(references) - 1, self.grid_rows).round().astype(int))
        alone = self._module.forced_alone(references[chosen]).permute(0, 3, 1, 2).cpu()
        rows = []
        for row, number in enumerate(chosen):
            first = int(number) * len(self._data.classes)
            results = [self._image(first + column) for column in range(len(classes))]
            rows.append([to_uint8(references[number]), alone[row], *results])
        return image_table(rows, (), ["reference", "forced alone", *(self._class_names[label] for label in classes)])
