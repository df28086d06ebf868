"""How well a tokenizer reconstructs the validation images."""

from __future__ import annotations

import lightning.pytorch as pl
from torch import Tensor
from torchmetrics import MeanMetric, Metric

from callbacks.measurement import Measurement
from metrics.images import psnr, to_uint8
from models.encoding import Encoding


class ReconstructionMetrics(Measurement):
    """PSNR and SSIM on 8-bit images, each averaged over images, as ``psnr`` and ``ssim``."""

    def begin(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start measuring anew."""
        from torchmetrics.image import StructuralSimilarityIndexMeasure

        metrics = {"psnr": MeanMetric(), "ssim": StructuralSimilarityIndexMeasure(data_range=255.0)}
        self._metrics: dict[str, Metric] = {name: metric.to(pl_module.device) for name, metric in metrics.items()}

    def measure(self, images: Tensor, reconstruction: Tensor, labels: Tensor, encoding: Encoding) -> None:
        """Compare images with their reconstructions."""
        originals, reconstructed = to_uint8(images), to_uint8(reconstruction)
        self._metrics["psnr"].update(psnr(reconstructed, originals))
        self._metrics["ssim"].update(reconstructed.float(), originals.float())

    def results(self) -> dict[str, Tensor]:
        """Both means."""
        return {name: metric.compute() for name, metric in self._metrics.items()}
