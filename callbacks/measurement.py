"""What the callbacks that measure a tokenizer share: a fresh start, no padding rows, figures under val/ or test/."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import lightning.pytorch as pl
from torch import Tensor

from models.encoding import Encoding


class Measurement(pl.Callback, ABC):
    """Measures reconstructions over the whole validation or test set, summed over ranks."""

    @abstractmethod
    def begin(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start measuring anew."""

    @abstractmethod
    def measure(self, images: Tensor, reconstruction: Tensor, labels: Tensor, encoding: Encoding) -> None:
        """Add images (B, 3, H, W) in [-1, 1], their reconstructions, labels (B,) and encoding."""

    @abstractmethod
    def results(self) -> dict[str, Any]:
        """Figures of all ranks together, by name; every rank calls it."""

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start measuring anew."""
        self.begin(trainer, pl_module)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: dict[str, Any],
        batch: dict[str, Tensor],
        *_: Any,
    ) -> None:
        """Add one batch, without the rows that pad it."""
        real = batch["index"] >= 0
        if real.any():
            encoding = outputs["encoding"].rows(real)
            self.measure(batch["image"][real], outputs["reconstruction"][real], batch["label"][real], encoding)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the figures."""
        prefix = "test" if trainer.testing else "val"
        for name, value in self.results().items():
            pl_module.log(f"{prefix}/{name}", value, prog_bar=name == "psnr", rank_zero_only=True)

    on_test_start = on_validation_start
    on_test_batch_end = on_validation_batch_end
    on_test_epoch_end = on_validation_epoch_end
