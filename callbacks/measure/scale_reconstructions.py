"""Reconstructions from the first scales of a multi-scale tokenizer (ImageFolder Fig. 7)."""

from __future__ import annotations

import lightning.pytorch as pl
from torch import Tensor

from callbacks.measure.decoded_columns import ORIGINAL, DecodedColumns
from callbacks.measure.measurement import SubsetMeasurement
from polytoken.errors import UserError
from polytoken.ranges import at_least
from polytoken.specs import Encoding


class ScaleReconstructions(SubsetMeasurement):
    """Decodes the sum of the first n scales, for n = 1 … N.

    Logs ``scales/psnr_n``. Writes ``scales.png``: a row per image, the original first, and a column per n with the grid
    of its last scale as title.

    Args:
        max_images: upper bound of the images, evenly spread over the set; each is decoded N − 1 times.
        rows: images in the picture.
        pixels: minimum height of an image in the picture.
    """

    def __init__(self, max_images: int = 2048, rows: int = 8, pixels: int = 96) -> None:
        super().__init__(max_images)
        at_least(1, self, rows=rows, pixels=pixels)
        self.num_rows = rows
        self.pixels = pixels

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Check the tokenizer before the first step.

        Raises:
            UserError: if its codes do not have several scales.
        """
        spec = pl_module.tokenizer.spec
        if spec is None or len(spec.scales) < 2:
            raise UserError(
                "callbacks.ScaleReconstructions shows tokenizers of several scales, and this one has "
                f"{'no codes' if spec is None else 'one scale'}: leave the callback out"
            )
        self._scales = spec.scales

    def begin(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().begin(trainer, pl_module)
        self._tokenizer = pl_module.tokenizer
        self._names = [str(number) for number in range(1, len(self._scales) + 1)]
        self._decoded = DecodedColumns(self._names, self.num_rows, trainer.world_size, pl_module.device)

    def measure(self, images: Tensor, reconstruction: Tensor, labels: Tensor, encoding: Encoding) -> None:
        assert encoding.codes is not None  # setup has checked it
        self._decoded.add(ORIGINAL, images, images)
        *names, last = self._names
        for name, total in zip(names, self._tokenizer.partial_sums(encoding.codes), strict=False):
            self._decoded.add(name, self._tokenizer.decode(total).image.float(), images)
        self._decoded.add(last, reconstruction, images)

    def results(self) -> dict[str, Tensor]:
        self._decoded.gather()
        return {f"scales/psnr_{name}": value for name, value in self._decoded.psnr().items()}

    def draw(self, trainer: pl.Trainer) -> None:
        # Pillow's font has no ×
        titles = [f"{name}: {height}x{width}" for name, (height, width) in zip(self._names, self._scales, strict=True)]
        self._decoded.publish(trainer, "scales", [ORIGINAL, *titles], self.pixels)
