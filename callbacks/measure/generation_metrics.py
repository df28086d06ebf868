"""Metrics of a generator's images, measured while `cli.py test` samples them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from torch import Tensor

from artifacts.metrics import comparison_section, merge_section
from artifacts.reference import Reference, target_of_file
from artifacts.run_files import METRICS
from polytoken.errors import UserError
from polytoken.metrics.extractor import Extractor
from polytoken.metrics.extractors import load_extractor
from polytoken.metrics.image_metrics import image_metrics
from polytoken.metrics.image_set import ImageSet


class GenerationMetrics(pl.Callback):
    """Measures the images of a SamplingModule over all ranks, without keeping them.

    Logs ``test/gfid/inception``, ``test/gsfid/inception``, ``test/gis/inception``, and for a reference that holds
    images ``test/precision/inception`` and ``test/recall/inception``; another network names its own. The section
    ``evaluate`` of the run's ``metrics.json`` adds the settings that they depend on, as ``make evaluate`` does.

    Args:
        reference: statistics of training images by the same network: ADM's npz, or one of ``make reference``.
        extractor: ``inception``, ``judge``, or a teacher such as ``dinov2_base``.
        weights: file of its weights; None is the one of ``make weights``. A judge's must be named.
        forced: accept a reference of images other than training images; a note in the metrics says so.
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
        """Load network and reference now, so that a missing or wrong file stops the run before it samples.

        Raises:
            MissingFileError: if a file is missing.
            UserError: if the reference is of another network or split, or there are more ranks than parts to sample.
        """
        if stage != "test":
            raise UserError(
                f"GenerationMetrics measures the images of the command test and cannot run in {stage}: leave it out"
            )
        self._data = trainer.datamodule  # type: ignore[attr-defined]
        if self._data.num_parts < trainer.world_size:  # a rank without images would miss the collectives
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
        self._images: ImageSet | None = None

    def on_test_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Tensor, batch: dict[str, Tensor], *_: Any
    ) -> None:
        """Add images uint8 (B, H, W, 3)."""
        assert self._extractor is not None  # since `setup`
        if self._images is None:  # the size is not known before the first image
            size = (outputs.shape[1], outputs.shape[2])
            self._target = target_of_file(Path(self.reference), self._extractor, size, forced=self.forced)
            self._images = ImageSet.for_use(self._extractor, self._data.num_images, self._target.rows is not None)
        self._images.add(outputs.permute(0, 3, 1, 2), batch["label"], batch["index"])

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Gather the ranks, log the metrics, and write the section."""
        assert self._extractor is not None and self._images is not None
        found = self._images.compute()
        if not trainer.is_global_zero:
            return
        metrics = image_metrics(found, self._target, device=self._extractor.device)
        for name, metric in metrics.items():
            if metric["value"] is not None:
                pl_module.log(f"test/{name}", metric["value"], rank_zero_only=True)
        settings = {**pl_module.settings(), **self._data.settings(), "precision": str(trainer.precision)}
        about = {"path": None, "n": found.count, "use": "generation", "settings": settings}
        notes = [*self._target.notes, *filter(None, (found.features.shortage,))]
        section = comparison_section({"samples": metrics}, about, self._extractor, self._target, notes)
        merge_section(Path(trainer.default_root_dir) / METRICS, "evaluate", section)
