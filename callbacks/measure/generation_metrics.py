"""What `cli.py test` says of a generator: the images that it draws, against real ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from torch import Tensor

from artifacts.metrics import comparison, merge_section
from artifacts.reference import Reference, target_of_file
from polytoken.errors import UserError
from polytoken.metrics.extractor import Extractor
from polytoken.metrics.extractors import load_extractor
from polytoken.metrics.generation import begin, figures_of
from polytoken.metrics.image_set import ImageSet


class GenerationMetrics(pl.Callback):
    """Measures what a SamplingModule generates, over all ranks, and keeps no image.

    Logs ``test/gfid/inception``, ``test/gsfid/inception``, ``test/gis/inception``, and of a reference that holds images
    ``test/precision/inception`` and ``test/recall/inception``; another network's figures are called after it. The
    section ``evaluate`` of the run's ``metrics.json`` says besides what they depend on, as ``make evaluate`` does.

    Args:
        reference: statistics of training images by the same network: ADM's npz, or one of ``make reference``.
        extractor: ``inception``, ``judge``, or a teacher: ``dinov2_base`` …
        weights: its file; None takes that of ``make weights``. A judge's must be named.
        forced: take a reference of other images than training images; the figures will say so.
    """

    def __init__(
        self, reference: str, extractor: str = "inception", weights: str | None = None, forced: bool = False
    ) -> None:
        self.reference = reference
        self.extractor = extractor
        self.weights = weights
        self.forced = forced
        self._extractor: Extractor | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Load network and reference now, so that what is missing or wrong stops the run before it samples.

        Raises:
            FileNotFoundError: if a file is missing.
            ValueError: if the reference is of another network or split, or there are more ranks than parts to sample.
        """
        if stage != "test":
            raise UserError(
                f"GenerationMetrics measures what test generates; it has nothing to do in {stage}: leave it out"
            )
        self._data = trainer.datamodule  # type: ignore[attr-defined]
        if self._data.num_parts < trainer.world_size:  # a rank without images would not meet the others
            raise UserError(
                f"{trainer.world_size} devices for {self._data.num_parts} parts of {self._data.part_size} images: "
                "lower data.part_size, or take fewer devices"
            )
        weights = None if self.weights is None else Path(self.weights)
        self._extractor = load_extractor(self.extractor, weights, trainer.strategy.root_device)
        reference = Reference.read(self.reference)
        reference.require_same(self._extractor)
        reference.require("generation", self.forced)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start measuring anew."""
        self._images: ImageSet | None = None

    def on_test_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Tensor, batch: dict[str, Tensor], *_: Any
    ) -> None:
        """Add images uint8 (B, H, W, 3)."""
        assert self._extractor is not None  # since `setup`
        if self._images is None:  # before the first image nobody knows the size
            size = (outputs.shape[1], outputs.shape[2])
            self._target = target_of_file(Path(self.reference), self._extractor, size, forced=self.forced)
            self._images = begin(self._extractor, self._data.num_images, self._target.rows is not None)
        self._images.add(outputs.permute(0, 3, 1, 2), batch["label"], batch["index"])

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Gather the ranks, log the figures, and write them with what they depend on."""
        assert self._extractor is not None and self._images is not None
        found = self._images.compute()
        if not trainer.is_global_zero:
            return
        figures = figures_of(found, self._target, device=self._extractor.device)
        for name, figure in figures.items():
            if figure["value"] is not None:
                pl_module.log(f"test/{name}", figure["value"], rank_zero_only=True)
        settings = {**pl_module.settings(), **self._data.settings(), "precision": str(trainer.precision)}
        about = {"path": None, "n": found.count, "use": "generation", "settings": settings}
        notes = [*self._target.notes, *filter(None, (found.features.shortage,))]
        path = Path(trainer.default_root_dir) / "metrics.json"
        merge_section(path, "evaluate", comparison({"samples": figures}, about, self._extractor, self._target, notes))
