"""Base classes of the callbacks that measure reconstructions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import lightning.pytorch as pl
from torch import Tensor

from polytoken.precision import full_precision
from polytoken.ranges import at_least
from polytoken.specs import Encoding


class Measurement(pl.Callback, ABC):
    """Measures reconstructions over the whole validation or test set, summed over ranks, in float32 without TF32."""

    reads_inputs: ClassVar[bool] = False
    """Images are as they were fed in; otherwise those of the outputs, at the module's ``metric_size``."""

    @abstractmethod
    def begin(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Reset all sums before a validation or test."""

    @abstractmethod
    def measure(self, images: Tensor, reconstruction: Tensor, labels: Tensor, encoding: Encoding) -> None:
        """Add a batch: images (B, 3, H, W) in [-1, 1], their reconstructions (not clamped), labels (B,), encoding."""

    @abstractmethod
    def results(self) -> dict[str, Any]:
        """Metrics of all ranks by name, logged under val/ or test/; a collective that every rank calls."""

    def draw(self, trainer: pl.Trainer) -> None:  # noqa: B027 - most draw nothing
        """Write the files and plots of `results`; called on rank zero after a validation."""

    def rows(self, index: Tensor) -> Tensor:
        """Mask (B,) of the images to measure, by their index in the set; a negative index pads a batch."""
        return index >= 0

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.begin(trainer, pl_module)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: dict[str, Any],
        batch: dict[str, Tensor],
        *_: Any,
    ) -> None:
        kept = self.rows(batch["index"])
        if kept.any():
            encoding = outputs["encoding"].rows(kept)
            with full_precision(pl_module.device):
                images = (batch if self.reads_inputs else outputs)["image"][kept]
                self.measure(images, outputs["reconstruction"][kept], batch["label"][kept], encoding)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        prefix = "test" if trainer.testing else "val"
        with full_precision(pl_module.device):
            results = self.results()
        for name, value in results.items():
            pl_module.log(f"{prefix}/{name}", value, prog_bar=name == "psnr", rank_zero_only=True)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            self.draw(trainer)

    on_test_start = on_validation_start
    on_test_batch_end = on_validation_batch_end
    on_test_epoch_end = on_validation_epoch_end


class SubsetMeasurement(Measurement):
    """Measures every n-th image, so that sets sorted by class are covered evenly.

    Args:
        max_images: upper bound of the images of all ranks together.
    """

    def __init__(self, max_images: int) -> None:
        at_least(1, self, max_images=max_images)
        self.max_images = max_images

    def begin(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stride = stride_of(trainer, self.max_images)

    def rows(self, index: Tensor) -> Tensor:
        return (index >= 0) & (index % self._stride == 0)


def stride_of(trainer: pl.Trainer, max_images: int) -> int:
    """The n of "every n-th image" for at most ``max_images`` of all ranks together."""
    # odd: an even stride would select images of some ranks only, since ranks take turns
    return -(-_images(trainer) // max_images) | 1


def measured_images(trainer: pl.Trainer, stride: int) -> int:
    """Number of images that every ``stride``-th is, over all ranks."""
    return -(-_images(trainer) // stride)


def _images(trainer: pl.Trainer) -> int:
    loader = trainer.test_dataloaders if trainer.testing else trainer.val_dataloaders
    batches = (trainer.num_test_batches if trainer.testing else trainer.num_val_batches)[0]
    return min(len(loader.dataset), int(batches) * loader.batch_size * trainer.world_size)
