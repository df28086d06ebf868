"""Training of the classifiers of the embedded data: the judge, and the stand-in for a high-level teacher."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.nn import functional
from torchmetrics import MeanMetric

from datamodules.images import check_image_size
from polytoken.classifier import SmallClassifier
from polytoken.errors import UserError
from polytoken.optimization import OptimizerConfig
from polytoken.ranges import below_one
from polytoken.teachers.stand_in import SmallVisionTransformer


class ClassifierModule(pl.LightningModule):
    """Trains a classifier by cross-entropy, and writes it to ``output`` at the end of the fit.

    Args:
        classifier: the network.
        output: safetensors file for the weights, with the validation accuracy in the header.
        optimizer: optimizer and schedule.
        label_smoothing: label smoothing of the cross-entropy.
    """

    def __init__(
        self,
        classifier: SmallClassifier | SmallVisionTransformer,
        output: str,
        optimizer: OptimizerConfig | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        below_one(self, label_smoothing=label_smoothing)
        self.classifier = classifier
        self.output = output
        self.optimizer_config = optimizer or OptimizerConfig()
        self.label_smoothing = label_smoothing
        self.accuracy = MeanMetric()

    def setup(self, stage: str) -> None:
        """Raise UserError if the data have another number of classes or images of another size, or none to validate."""
        check_validation(self.trainer)
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(self.classifier, SmallVisionTransformer):
            architecture = self.classifier.architecture
            check_image_size(data, architecture["image_size"], "model.classifier.image_size")
            classes = architecture["num_classes"]
        else:
            classes = self.classifier.num_classes
        found = len(getattr(data, "class_to_idx", range(classes)))
        if found != classes:
            raise UserError(
                f"data.source has {found} classes, and model.classifier.num_classes is {classes}: set "
                f"model.classifier.num_classes to {found}"
            )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer_config.build(self.classifier.parameters())

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> Tensor:
        """Cross-entropy of one batch, a scalar."""
        self.optimizer_config.set_learning_rate(self.optimizers(), self.global_step, self.trainer.max_steps)  # type: ignore[arg-type]
        logits = self.classifier(batch["image"])
        loss = functional.cross_entropy(logits, batch["label"], label_smoothing=self.label_smoothing)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_index: int) -> None:
        """Accuracy of one batch, without padding rows."""
        real = batch["index"] >= 0
        if real.any():  # the last batch of a rank may hold only padding
            self.accuracy.update((self.classifier(batch["image"][real]).argmax(-1) == batch["label"][real]).float())
        self.log("val/accuracy", self.accuracy, prog_bar=True)

    def deliver(self) -> list[Path]:
        """Write the classifier with the accuracy of the last validation."""
        self.classifier.save(self.output, float(self.trainer.callback_metrics["val/accuracy"]))
        return [Path(self.output)]


def check_validation(trainer: pl.Trainer) -> None:
    """Raise UserError if a fit never validates, since the file of a classifier records its accuracy."""
    if trainer.limit_val_batches == 0:
        raise UserError(
            "trainer.limit_val_batches is 0, and the accuracy is part of the file that is written: set it to 1 or more"
        )
