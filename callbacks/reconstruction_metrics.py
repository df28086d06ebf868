"""How well a tokenizer reconstructs the validation images."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from torch import Tensor
from torchmetrics import MeanMetric, Metric

from metrics.images import psnr, to_uint8
from models.classifier import SmallClassifier


class ReconstructionMetrics(pl.Callback):
    """PSNR and SSIM on 8-bit images, averaged over images; and what the judge makes of them.

    Logs ``psnr``, ``ssim`` and, with a judge, ``judge_accuracy`` of the reconstructions beside
    ``judge_accuracy_originals``, each under ``val/`` or ``test/``.

    Args:
        judge: safetensors of the judge; None leaves it out.

    """

    def __init__(self, judge: str | None = None) -> None:
        self.judge = judge
        self._judge: SmallClassifier | None = None
        self._metrics: dict[str, Metric] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Load the judge now, so that a missing file stops the run before its first step."""
        if self.judge is not None:
            self._judge = SmallClassifier.load(self.judge)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start measuring anew."""
        from torchmetrics.image import StructuralSimilarityIndexMeasure

        self._metrics = {"psnr": MeanMetric(), "ssim": StructuralSimilarityIndexMeasure(data_range=255.0)}
        if self._judge is not None:
            self._judge.to(pl_module.device)
            self._metrics |= {"judge_accuracy": MeanMetric(), "judge_accuracy_originals": MeanMetric()}
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
        images, reconstruction, labels = batch["image"][real], outputs["reconstruction"][real], batch["label"][real]
        if not len(images):
            return
        originals, reconstructed = to_uint8(images), to_uint8(reconstruction)
        self._metrics["psnr"].update(psnr(reconstructed, originals))
        self._metrics["ssim"].update(reconstructed.float(), originals.float())
        if self._judge is not None:
            self._metrics["judge_accuracy"].update((self._judge(reconstruction).argmax(1) == labels).float())
            self._metrics["judge_accuracy_originals"].update((self._judge(images).argmax(1) == labels).float())

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
