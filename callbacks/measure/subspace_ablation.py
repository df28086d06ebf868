"""Reconstructions without each subspace, and from each alone (SSQ Fig. 5, FQGAN Fig. 3, ImageFolder Fig. 6)."""

from __future__ import annotations

import lightning.pytorch as pl
from torch import Tensor

from callbacks.measure.decoded_columns import ORIGINAL, DecodedColumns
from callbacks.measure.measurement import SubsetMeasurement
from callbacks.measure.networks import load_measuring
from polytoken.metrics.extractor import Extractor
from polytoken.metrics.frechet import FeatureStatistics, frechet_distance
from polytoken.ranges import at_least
from polytoken.specs import Encoding


class SubspaceAblation(SubsetMeasurement):
    """Decodes with some subspaces set to zero: each one left out, and each one alone.

    Logs ``ablation/psnr_<column>``, and with an extractor ``ablation/rfd/<name>_<column>``, for the columns ``all``,
    ``without_i`` and ``only_i``; equal columns are decoded once. Writes ``subspaces.png``: a row per image, the
    original first.

    Args:
        extractor: network of a Fréchet distance: ``judge``, ``efficientnet_lite2`` …; None omits it.
        weights: file of its weights; None is the installed one. A judge's must be named.
        max_images: upper bound of the images, evenly spread over the set; each is decoded up to 2k times.
        rows: images in the plot.
        pixels: minimum height of an image in the plot.
    """

    def __init__(
        self,
        extractor: str | None = None,
        weights: str | None = None,
        max_images: int = 2048,
        rows: int = 8,
        pixels: int = 96,
    ) -> None:
        super().__init__(max_images)
        at_least(1, self, rows=rows, pixels=pixels)
        self.extractor = extractor
        self.weights = weights
        self.num_rows = rows
        self.pixels = pixels
        self._network: Extractor | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Load the network now, so that a missing file stops the run before its first step.

        Raises:
            MissingFileError: if its file is missing.
            UserError: if training reads this network, or as :func:`load_extractor`.
        """
        if self.extractor is not None:
            self._network = load_measuring(self.extractor, self.weights, pl_module, trainer.strategy.root_device)

    def begin(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().begin(trainer, pl_module)
        self._tokenizer = pl_module.tokenizer
        self._device = pl_module.device
        # every rank has every column from the start, since a rank without images takes part in the sums too
        self._columns = columns(len(pl_module.tokenizer.subspace_channels))
        self._decoded = DecodedColumns(list(self._columns), self.num_rows, trainer.world_size, pl_module.device)
        self._features: dict[str, FeatureStatistics] = {}
        if self._network is not None:
            width, names = self._network.num_features, (ORIGINAL, *self._columns)
            self._features = {name: FeatureStatistics(width).to(pl_module.device) for name in names}

    def measure(self, images: Tensor, reconstruction: Tensor, labels: Tensor, encoding: Encoding) -> None:
        decoded: dict[tuple[int, ...], Tensor] = {tuple(range(len(encoding.subspaces))): reconstruction}
        self._add(ORIGINAL, images, images)
        for name, kept in self._columns.items():
            if kept not in decoded:
                zeroed = self._tokenizer.keep_subspaces(encoding.quantized, kept)
                decoded[kept] = self._tokenizer.decode(zeroed).image.float()
            self._add(name, decoded[kept], images)

    def results(self) -> dict[str, Tensor]:
        results = {f"ablation/psnr_{name}": value for name, value in self._decoded.psnr().items()}
        statistics = {name: features.compute() for name, features in self._features.items()}
        for name in self._columns if self._network is not None else ():
            distance = frechet_distance(statistics[name], statistics[ORIGINAL])
            results[f"ablation/rfd/{self._network.name}_{name}"] = distance
        self._decoded.gather()
        return results

    def draw(self, trainer: pl.Trainer) -> None:
        if self._columns:
            titles = [ORIGINAL, *(name.replace("_", " ") for name in self._columns)]
            self._decoded.publish(trainer, "subspaces", titles, self.pixels)

    def _add(self, name: str, decoded: Tensor, images: Tensor) -> None:
        compared = self._decoded.add(name, decoded, images)
        if self._network is not None:
            self._features[name].update(self._network(compared).pooled)


def columns(num_subspaces: int) -> dict[str, tuple[int, ...]]:
    """Subspaces kept by each column, by its name."""
    everything = range(num_subspaces)
    without = {f"without_{left_out}": tuple(i for i in everything if i != left_out) for left_out in everything}
    if not num_subspaces:
        return {}
    return {"all": tuple(everything), **without, **{f"only_{index}": (index,) for index in everything}}
