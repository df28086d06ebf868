"""Whether an independent classifier still recognises what a tokenizer reconstructs."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from torch import Tensor
from torchmetrics import MeanMetric

from models.classifier import SmallClassifier


class JudgeAccuracy(pl.Callback):
    """Logs ``val/judge_accuracy`` on reconstructions beside ``val/judge_accuracy_originals`` on the images themselves.

    Args:
        weights: the judge's safetensors (``make teacher`` trains it).
    """

    def __init__(self, weights: str) -> None:
        self.weights = weights
        self._judge: SmallClassifier | None = None
        self._means: dict[str, MeanMetric] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Load the judge now, so that a missing file stops the run before its first step."""
        self._judge = SmallClassifier.load(self.weights)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start measuring anew."""
        assert self._judge is not None
        self._judge.to(pl_module.device)
        names = ("judge_accuracy", "judge_accuracy_originals")
        self._means = {name: MeanMetric().to(pl_module.device) for name in names}

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: dict[str, Any],
        batch: dict[str, Tensor],
        *_: Any,
    ) -> None:
        """Judge one batch, without the rows that pad it."""
        assert self._judge is not None
        real = batch["index"] >= 0
        for name, images in (
            ("judge_accuracy", outputs["reconstruction"]),
            ("judge_accuracy_originals", batch["image"]),
        ):
            recognised = self._judge(images[real]).argmax(1) == batch["label"][real]
            self._means[name].update(recognised.float())

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the figures of all ranks together."""
        for name, mean in self._means.items():
            pl_module.log(f"val/{name}", mean.compute(), rank_zero_only=True)
