"""Linear probe on feature sets too large for scikit-learn's solver."""

from __future__ import annotations

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from polytoken.metrics.probes import Labelled

EPOCHS, FIT_BATCH = 10, 4096


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


def fit_in_batches(train: Labelled, features: Tensor, epochs: int = EPOCHS, batch_size: int = FIT_BATCH) -> Tensor:
    """Labels (n,) of features (n, D) by a linear probe fitted to ``train``, in an order of fixed seed."""
    classes, targets = train.labels.unique(return_inverse=True)
    model = LinearProbe(train.features.shape[1], len(classes))
    order = torch.Generator().manual_seed(0)
    trainer = pl.Trainer(
        max_epochs=epochs,
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(model, DataLoader(TensorDataset(train.features, targets), batch_size, shuffle=True, generator=order))
    model.cpu().eval()
    with torch.no_grad():
        return classes[torch.cat([model(batch).argmax(1) for batch in features.split(batch_size)])]
