"""Training of a dual encoder of the embedded data: an image tower with attention pooling, and a text tower."""

from __future__ import annotations

import math
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import MeanMetric

from datamodules.images import check_image_size
from lightning_modules.classifier import check_validation
from polytoken.errors import UserError
from polytoken.optimization import OptimizerConfig
from polytoken.teachers import Teacher
from polytoken.teachers.class_vectors import PLACEHOLDER, check_prompts
from polytoken.teachers.stand_in import SmallVisionTransformer
from polytoken.teachers.text import SmallTextTransformer


class DualEncoderModule(pl.LightningModule):
    """Trains both towers by SigLIP's sigmoid loss on images and prompts with the names of their classes.

    A batch is paired with one text of each class; in arXiv 2303.15343, eq. 1, each image brings a text of its own. Both
    towers are written at the end of the fit. A validation classifies images by the names of the classes.

    Args:
        image: the image tower.
        text: the text tower.
        classes: name in prompts by class of the data set.
        prompts: texts with a placeholder {}; each class draws one in each step.
        output: safetensors file for the image tower.
        text_output: safetensors file for the text tower.
        optimizer: optimizer and schedule.

    Raises:
        UserError: the widths differ, the image tower does not pool by attention, or prompts or names are unusable.
    """

    def __init__(
        self,
        image: SmallVisionTransformer,
        text: SmallTextTransformer,
        classes: dict[str, str],
        prompts: list[str],
        output: str,
        text_output: str,
        optimizer: OptimizerConfig | None = None,
    ) -> None:
        super().__init__()
        check_prompts(prompts)
        if len(classes) < 2:
            raise UserError(f"model.classes names {len(classes)} classes: a dual encoder tells two or more apart")
        if image.architecture["pooling"] != "attention" or image.architecture["num_classes"]:
            raise UserError("the image tower pools by attention and has no classes: set image.pooling to attention")
        if image.width != text.architecture["width"]:
            raise UserError(
                f"the image tower has width {image.width}, and the text tower {text.architecture['width']}: set "
                "text.width to that of the image tower"
            )
        self.image = image
        self.text = text
        self.classes = classes
        self.prompts = prompts
        self.output, self.text_output = output, text_output
        self.optimizer_config = optimizer or OptimizerConfig()
        self.scale = nn.Parameter(torch.tensor(math.log(10.0)))
        # the log odds of a positive pair; SigLIP begins at -10, with 32,768 texts an image
        self.bias = nn.Parameter(torch.tensor(-math.log(len(classes) - 1.0)))
        self.accuracy = MeanMetric()
        self.register_buffer("texts", torch.empty(0, dtype=torch.int64), persistent=False)  # (C · P, L)
        self.register_buffer("vectors", torch.empty(0), persistent=False)  # (C, D), of a validation

    def setup(self, stage: str) -> None:
        """Order the names by label, and tokenize all texts.

        Raises:
            UserError: the data set has other classes or images of another size, or no validation is asked for.
        """
        check_validation(self.trainer)
        data = getattr(self.trainer, "datamodule", None)
        check_image_size(data, self.image.architecture["image_size"], "model.image.image_size")
        labels: dict[str, int] = self.trainer.datamodule.class_to_idx  # type: ignore[attr-defined]
        if differing := sorted(labels.keys() ^ self.classes.keys()):
            raise UserError(
                f"model.classes and the data set do not both have class {differing[0]!r}: name each of its "
                f"{len(labels)} classes, and no other"
            )
        self.classes = {name: self.classes[name] for name in sorted(labels, key=labels.__getitem__)}
        texts = [prompt.replace(PLACEHOLDER, name) for name in self.classes.values() for prompt in self.prompts]
        self.texts = self.text.tokenize(texts).to(self.device)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer_config.build(self.parameters())

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> Tensor:
        """Sigmoid loss of one batch, a scalar."""
        self.optimizer_config.set_learning_rate(self.optimizers(), self.global_step, self.trainer.max_steps)  # type: ignore[arg-type]
        first = torch.arange(len(self.classes), device=self.device) * len(self.prompts)
        drawn = torch.randint(len(self.prompts), first.shape, device=self.device)
        images = functional.normalize(self.image(batch["image"]), dim=-1)
        texts = functional.normalize(self.text(self.texts[first + drawn]), dim=-1)
        loss = sigmoid_loss(images @ texts.T * self.scale.exp() + self.bias, batch["label"])
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def on_validation_epoch_start(self) -> None:
        """Embed all prompts of all classes; the vector of a class is their mean."""
        rows = functional.normalize(self.text(self.texts), dim=-1).unflatten(0, (len(self.classes), -1))
        self.vectors = functional.normalize(rows.mean(1), dim=-1)

    def validation_step(self, batch: dict[str, Tensor], batch_index: int) -> None:
        """Zero-shot accuracy of one batch, without padding rows."""
        real = batch["index"] >= 0
        if real.any():  # the last batch of a rank may hold only padding
            scores = self.image(batch["image"][real]) @ self.vectors.T
            self.accuracy.update((scores.argmax(-1) == batch["label"][real]).float())
        self.log("val/accuracy", self.accuracy, prog_bar=True)

    def deliver(self) -> list[Path]:
        """Write both towers; the text tower names the image tower that it belongs to."""
        self.image.save(self.output, float(self.trainer.callback_metrics["val/accuracy"]))
        self.text.save(self.text_output, Teacher("stand_in", self.output).identity, self.classes, self.prompts)
        return [Path(self.output), Path(self.text_output)]


def sigmoid_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """SigLIP's loss of logits (B, C) of images and classes: the sum over classes, the mean over images.

    Args:
        logits: of image i and the text of class j.
        labels: (B,) classes of the images.
    """
    positive = (labels[:, None] == torch.arange(logits.shape[1], device=labels.device)).to(logits.dtype)
    return functional.binary_cross_entropy_with_logits(logits, positive, reduction="none").sum(1).mean()
