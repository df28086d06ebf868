"""Training of the stand-in for a mid-level teacher by masked image modelling (SimMIM, arXiv 2111.09886)."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from datamodules.images import check_image_size
from polytoken.errors import UserError
from polytoken.optimization import OptimizerConfig
from polytoken.teachers.stand_in import SmallVisionTransformer


class MaskedPatchModule(pl.LightningModule):
    """Trains a network to predict the pixels of masked patches from the visible ones.

    At the end of the fit the network is written to ``output``, without the linear layer that predicts pixels.

    Args:
        network: the stand-in.
        output: safetensors file for the weights.
        optimizer: optimizer and schedule.
        mask_ratio: fraction of the patches that are masked, i.e. grey.
    """

    def __init__(
        self,
        network: SmallVisionTransformer,
        output: str,
        optimizer: OptimizerConfig | None = None,
        mask_ratio: float = 0.5,
    ) -> None:
        super().__init__()
        if not 0 < mask_ratio < 1:
            raise UserError(f"mask_ratio must lie between 0 and 1, got {mask_ratio}")
        self.network = network
        self.output = output
        self.optimizer_config = optimizer or OptimizerConfig()
        self.mask_ratio = mask_ratio
        self.error = MeanMetric()
        self.to_pixels = nn.Linear(network.width, 3 * network.patch_size**2)

    def setup(self, stage: str) -> None:
        """Raise UserError if the images have another size than the network."""
        data = getattr(self.trainer, "datamodule", None)
        check_image_size(data, self.network.architecture["image_size"], "model.network.image_size")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer_config.build(self.parameters())

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> Tensor:
        """Error of one batch under random masks, a scalar."""
        self.optimizer_config.set_learning_rate(self.optimizers(), self.global_step, self.trainer.max_steps)  # type: ignore[arg-type]
        loss = self._error(batch["image"], self._random_mask(batch["image"]))
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_index: int) -> None:
        """Error of one batch under a chequered mask, without padding rows."""
        images = batch["image"][batch["index"] >= 0]
        rows, columns = (side // self.network.patch_size for side in images.shape[-2:])
        chequered = (torch.arange(rows)[:, None] + torch.arange(columns)) % 2 == 1
        mask = chequered.to(images.device).expand(len(images), -1, -1)
        if len(images):  # the last batch of a rank may hold only padding
            self.error.update(self._error(images, mask), weight=len(images))
        self.log("val/error", self.error, prog_bar=True)

    def deliver(self) -> list[Path]:
        """Write the network."""
        self.network.save(self.output)
        return [Path(self.output)]

    def _random_mask(self, images: Tensor) -> Tensor:
        rows, columns = (side // self.network.patch_size for side in images.shape[-2:])
        return torch.rand(len(images), rows, columns, device=images.device) < self.mask_ratio

    def _error(self, images: Tensor, mask: Tensor) -> Tensor:
        """Mean absolute error of the patches where ``mask`` (B, h, w) is true."""
        size = self.network.patch_size
        hidden = mask.repeat_interleave(size, 1).repeat_interleave(size, 2).unsqueeze(1)
        predicted = self.to_pixels(self.network.patches(images.masked_fill(hidden, 0.0)))
        patches = images.unfold(2, size, size).unfold(3, size, size).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
        return (predicted - patches).abs().mean(-1)[mask.flatten(1)].mean()
