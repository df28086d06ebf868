"""Training of the classifiers of the embedded data: the judge, and the stand-in for a high-level teacher."""

from __future__ import annotations

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.nn import functional
from torchmetrics import MeanMetric

from polytoken.classifier import SmallClassifier
from polytoken.optimization import OptimizerConfig
from polytoken.teachers.stand_in import SmallVisionTransformer


class ClassifierModule(pl.LightningModule):
    """Cross-entropy over the labels; after each validation the classifier is written to ``output``.

    Args:
        classifier: the network.
        output: safetensors it is saved to, its validation accuracy in the metadata.
        optimizer: its optimizer and schedule.
        label_smoothing: of the cross-entropy.
    """

    def __init__(
        self,
        classifier: SmallClassifier | SmallVisionTransformer,
        output: str,
        optimizer: OptimizerConfig | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.classifier = classifier
        self.output = output
        self.optimizer_config = optimizer or OptimizerConfig()
        self.label_smoothing = label_smoothing
        self.accuracy = MeanMetric()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One AdamW."""
        return self.optimizer_config.build(self.classifier.parameters())

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> Tensor:
        """Cross-entropy of one batch."""
        self.optimizer_config.set_learning_rate(self.optimizers(), self.global_step, self.trainer.max_steps)  # type: ignore[arg-type]
        logits = self.classifier(batch["image"])
        loss = functional.cross_entropy(logits, batch["label"], label_smoothing=self.label_smoothing)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_index: int) -> None:
        """Accuracy of one batch, without the rows that pad it."""
        real = batch["index"] >= 0
        if real.any():  # the last batch of a rank may be padding alone
            self.accuracy.update((self.classifier(batch["image"][real]).argmax(-1) == batch["label"][real]).float())
        self.log("val/accuracy", self.accuracy, prog_bar=True)

    def on_validation_end(self) -> None:
        """Write the classifier with the accuracy just measured."""
        if self.trainer.is_global_zero:
            self.classifier.save(self.output, float(self.trainer.callback_metrics["val/accuracy"]))
