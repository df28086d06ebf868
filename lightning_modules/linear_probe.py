"""Linear probe on feature sets too large for scikit-learn's solver."""

from __future__ import annotations

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn import functional


class LinearProbe(pl.LightningModule):
    """Multinomial logistic regression, trained from zero weights by AdamW with a cosine schedule to zero.

    Batches are features (B, D) float32 and classes (B,) int64 from 0 to C − 1.

    Args:
        num_features: D.
        num_classes: C.
        learning_rate: rate of the first step.
        weight_decay: weight decay of all parameters.
    """

    def __init__(
        self, num_features: int, num_classes: int, learning_rate: float = 1e-2, weight_decay: float = 1e-4
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(num_features, num_classes)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay

    def forward(self, features: Tensor) -> Tensor:
        """Features (B, D) to logits (B, C)."""
        return self.linear(features)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        """Cross-entropy of one batch, a scalar."""
        features, classes = batch
        loss = functional.cross_entropy(self(features), classes)
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> dict:
        """AdamW, and its schedule by step."""
        optimizer = torch.optim.AdamW(self.parameters(), self.learning_rate, weight_decay=self.weight_decay)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
