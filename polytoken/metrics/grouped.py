"""Mean per class."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class GroupedMean(Metric):
    """Mean of values by label, float64, summed over batches and ranks.

    Args:
        num_groups: labels run from 0 to num_groups − 1.
    """

    full_state_update = False
    sums: Tensor
    counts: Tensor

    def __init__(self, num_groups: int) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(num_groups, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(num_groups, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, values: Tensor, labels: Tensor) -> None:
        """Add values (B,) with labels (B,)."""
        self.sums.index_add_(0, labels, values.double())
        self.counts += torch.bincount(labels, minlength=len(self.counts))

    def compute(self) -> tuple[Tensor, Tensor]:
        """Mean of each group (num_groups,), NaN for an empty group, and the mean of all values."""
        return self.sums / self.counts, self.sums.sum() / self.counts.sum()
