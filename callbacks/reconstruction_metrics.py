"""How well a tokenizer reconstructs the validation images."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from torch import Tensor
from torchmetrics import MeanMetric, Metric

from metrics.images import psnr, to_uint8


class ReconstructionMetrics(pl.Callback):
    """PSNR and SSIM on 8-bit images, each averaged over images, as ``val/psnr`` and ``val/ssim`` (or ``test/``)."""

    def __init__(self) -> None:
        self._metrics: dict[str, Metric] = {}

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start measuring anew."""
        from torchmetrics.image import StructuralSimilarityIndexMeasure

        self._metrics = {"psnr": MeanMetric(), "ssim": StructuralSimilarityIndexMeasure(data_range=255.0)}
        self._metrics = {name: metric.to(pl_module.device) for name, metric in self._metrics.items()}

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: dict[str, Any],
        batch: dict[str, Tensor],
        *_: Any,
    ) -> None:
        """Measure one batch, without the rows that pad it."""
        real = batch["index"] >= 0
        if not real.any():
            return
        originals, reconstructed = to_uint8(batch["image"][real]), to_uint8(outputs["reconstruction"][real])
        self._metrics["psnr"].update(psnr(reconstructed, originals))
        self._metrics["ssim"].update(reconstructed.float(), originals.float())

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the figures of all ranks together."""
        self._log(pl_module, "val")

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the figures of all ranks together."""
        self._log(pl_module, "test")

    on_test_start = on_validation_start
    on_test_batch_end = on_validation_batch_end

    def _log(self, pl_module: pl.LightningModule, prefix: str) -> None:
        for name, metric in self._metrics.items():
            pl_module.log(f"{prefix}/{name}", metric.compute(), prog_bar=name == "psnr", rank_zero_only=True)
