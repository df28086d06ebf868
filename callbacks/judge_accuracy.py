"""Whether a classifier still recognises what a tokenizer reconstructs."""

from __future__ import annotations

import lightning.pytorch as pl
from torch import Tensor
from torchmetrics import MeanMetric

from callbacks.measurement import Measurement
from models.classifier import SmallClassifier
from models.encoding import Encoding


class JudgeAccuracy(Measurement):
    """Logs ``judge_accuracy`` on reconstructions beside ``judge_accuracy_originals`` on the images themselves.

    Args:
        weights: the judge's safetensors (``make teacher`` trains it).
    """

    def __init__(self, weights: str) -> None:
        self.weights = weights

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Load the judge now, so that a missing file stops the run before its first step."""
        self._judge = SmallClassifier.load(self.weights)

    def begin(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start measuring anew."""
        self._judge.to(pl_module.device)
        self._reconstructions = MeanMetric().to(pl_module.device)
        self._originals = MeanMetric().to(pl_module.device)

    def measure(self, images: Tensor, reconstruction: Tensor, labels: Tensor, encoding: Encoding) -> None:
        """Judge images and reconstructions."""
        self._reconstructions.update((self._judge(reconstruction).argmax(1) == labels).float())
        self._originals.update((self._judge(images).argmax(1) == labels).float())

    def results(self) -> dict[str, Tensor]:
        """Both accuracies."""
        return {
            "judge_accuracy": self._reconstructions.compute(),
            "judge_accuracy_originals": self._originals.compute(),
        }
