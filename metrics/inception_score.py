"""How sure and how varied a classifier finds a set of images (arXiv 1606.03498)."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class InceptionScore(Metric):
    """exp(E[KL(p(y|x) ‖ p(y))]) of any classifier, over all images at once; between 1 and the number of classes.

    Published scores are means over ten splits, which come out a little lower.

    Args:
        num_classes: C.
    """

    full_state_update = False
    count: Tensor
    probabilities: Tensor
    negative_entropy: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("probabilities", torch.zeros(num_classes, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("negative_entropy", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, logits: Tensor) -> None:
        """Add logits (B, C)."""
        logarithms = logits.double().log_softmax(1)
        self.count += len(logits)
        self.probabilities += logarithms.exp().sum(0)
        self.negative_entropy += (logarithms.exp() * logarithms).sum()

    def compute(self) -> Tensor:
        """The score, a float64 scalar."""
        marginal = self.probabilities / self.count
        return (self.negative_entropy / self.count - torch.special.xlogy(marginal, marginal).sum()).exp()
