"""Principal components of a tokenizer's features as colours (Ideal, arXiv 2606.11096, Fig. 1 right)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.nn import functional

from callbacks.measure.measurement import SubsetMeasurement, measured_images
from callbacks.measure.plots import image_table, publish
from polytoken.errors import UserError
from polytoken.features import ALL, feature_names, features_of
from polytoken.metrics.frechet import FeatureStatistics
from polytoken.metrics.gather import gather_rows
from polytoken.metrics.images import to_uint8
from polytoken.metrics.principal_components import PrincipalComponents
from polytoken.precision import full_precision
from polytoken.ranges import at_least
from polytoken.specs import Encoding
from polytoken.teachers import Teacher
from polytoken.tokenizers import Tokenizer

DEVIATIONS = 2.0  # from the mean to the end of a colour channel


class FeatureComponents(SubsetMeasurement):
    """Draws the first three principal components of patch features as red, green and blue.

    Writes ``components.png``: a row per image, and a column each for the image, blocks of the foundation model where
    the tokenizer has one, each subspace before and after quantization, and the decoded features. The components of a
    column are those of all its patches over all measured images, so colours compare within a column only.

    Args:
        blocks: blocks of the foundation model, counted from 1, before any norm; None shows four at equal distances.
        max_images: upper bound of the images that the components are computed from, evenly spread over the set.
        rows: images in the picture.
        pixels: minimum height of an image in the picture.
    """

    def __init__(
        self, blocks: Sequence[int] | None = None, max_images: int = 256, rows: int = 6, pixels: int = 96
    ) -> None:
        super().__init__(max_images)
        at_least(1, self, rows=rows, pixels=pixels)
        self.blocks = blocks
        self.num_rows = rows
        self.pixels = pixels

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Check the blocks before the first step.

        Raises:
            UserError: blocks are named that the foundation model does not have, or there is no such model.
        """
        foundation: Teacher | None = getattr(pl_module.tokenizer, "foundation", None)
        if foundation is None and self.blocks:
            raise UserError(
                "FeatureComponents: blocks are those of a foundation model, and this tokenizer has none: leave them out"
            )
        for block in self.blocks or ():
            assert foundation is not None
            foundation.check_block(block)

    def begin(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().begin(trainer, pl_module)
        self._tokenizer: Tokenizer = pl_module.tokenizer
        self._device = pl_module.device
        # odd, as the stride
        self._shown_stride = self._stride * (max(1, measured_images(trainer, self._stride) // self.num_rows - 1) | 1)
        # every rank has every column from the start, since a rank without images takes part in the sums too
        side = self._tokenizer.image_size
        columns = self._columns(torch.zeros(1, 3, side, side, device=self._device))
        self._statistics = {name: FeatureStatistics(maps.shape[1]).to(self._device) for name, maps in columns.items()}
        self._images: list[Tensor] = []
        self._maps: dict[str, list[Tensor]] = {name: [] for name in columns}
        self._rows: list[tuple[Tensor, ...]] = []

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: dict[str, Any],
        batch: dict[str, Tensor],
        *_: Any,
    ) -> None:
        """Read the images as they were fed in: those of ``outputs`` may have another size."""
        kept = self.rows(batch["index"])
        if not kept.any():
            return
        images, shown = batch["image"][kept], batch["index"][kept] % self._shown_stride == 0
        for name, maps in self._columns(images).items():
            self._statistics[name].update(maps.movedim(1, -1).flatten(0, 2))
            self._maps[name].append(maps[shown])
        self._images.append(to_uint8(images[shown]))

    on_test_batch_end = on_validation_batch_end

    def measure(self, images: Tensor, reconstruction: Tensor, labels: Tensor, encoding: Encoding) -> None:
        """Nothing: the batch is read as it was fed in."""

    def results(self) -> dict[str, Tensor]:
        images = gather_rows(self._images, self._device)[: self.num_rows]
        columns = [images]
        for name, statistics in self._statistics.items():
            maps = gather_rows(self._maps[name], self._device)[: self.num_rows]
            if len(images):
                columns.append(colours(maps, PrincipalComponents.of(statistics.compute(), 3), images.shape[-2:]))
        self._rows = list(zip(*(column.cpu() for column in columns), strict=True))
        return {}

    def draw(self, trainer: pl.Trainer) -> None:
        if self._rows:
            titles = ["image", *self._statistics]
            publish(trainer, "components", image_table(self._rows, column_titles=titles, pixels=self.pixels))

    def _columns(self, images: Tensor) -> dict[str, Tensor]:
        """Features (B, D, h, w) of images (B, 3, H, W) by the title of their column."""
        columns: dict[str, Tensor] = {}
        foundation: Teacher | None = getattr(self._tokenizer, "foundation", None)
        if foundation is not None:
            blocks = self.blocks or sorted({max(1, foundation.depth * part // 4) for part in (1, 2, 3, 4)})
            with full_precision(self._device):
                found = foundation.features(images, blocks, full_precision=True)
            columns = {
                f"block {block}": one.patches.permute(0, 3, 1, 2) for block, one in zip(blocks, found, strict=True)
            }
        names = [
            name
            for name in feature_names(self._tokenizer)
            if not name.startswith("foundation/") and not name.endswith(f"/{ALL}")
        ]
        return columns | dict(zip(names, features_of(self._tokenizer, images, *names), strict=True))


def colours(maps: Tensor, components: PrincipalComponents, size: Sequence[int]) -> Tensor:
    """Three components of features (B, D, h, w) as images uint8 (B, 3, *size); the mean is grey."""
    scores = components.scores(maps.movedim(1, -1)).movedim(-1, 1)
    return functional.interpolate(to_uint8((scores / DEVIATIONS).float()), tuple(size), mode="nearest")
