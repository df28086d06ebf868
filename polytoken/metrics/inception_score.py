"""Inception score of any classifier (arXiv 1606.03498).

torch-fidelity needs all logits at once and shuffles them by a seed; here float64 sums are streamed over batches and
ranks, and the position of an image determines its split.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from polytoken.errors import UserError


class InceptionScore(Metric):
    """Mean over splits of exp(E[KL(p(y|x) ‖ p(y))]) of any classifier; between 1 and the number of classes.

    A small split estimates p(y) less well and scores lower, so scores compare at equal splits only. ADM's are 5,000
    consecutive images each (``num_splits=ceil(n / 5000), split_size=5000``), other published scores use ten shuffled
    splits; here image i is in split i mod num_splits, which mixes sorted classes as well and needs no seed. One split,
    which counts all images together, comes out a little higher than published scores.

    Args:
        num_classes: C.
        num_splits: S.
        split_size: consecutive images a split; None deals the images out to the splits in turn.
    """

    full_state_update = False
    count: Tensor
    probabilities: Tensor
    negative_entropy: Tensor

    def __init__(self, num_classes: int, num_splits: int = 1, split_size: int | None = None) -> None:
        super().__init__()
        self.num_splits = num_splits
        self.split_size = split_size
        self.add_state("count", torch.zeros(num_splits, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("probabilities", torch.zeros(num_splits, num_classes, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("negative_entropy", torch.zeros(num_splits, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, indices: Tensor | None = None) -> None:
        """Add logits (B, C) of the images with these positions (B,) in the whole set.

        Raises:
            UserError: if positions are omitted although there are several splits, or lie after the last split.
        """
        splits = self._splits(logits, indices)
        logarithms = logits.double().log_softmax(1)
        probabilities = logarithms.exp()
        self.count.index_add_(0, splits, torch.ones_like(splits))
        self.probabilities.index_add_(0, splits, probabilities)
        self.negative_entropy.index_add_(0, splits, (probabilities * logarithms).sum(1))

    def compute(self) -> Tensor:
        """Score, a float64 scalar; empty splits do not count."""
        filled = self.count > 0
        count = self.count[filled]
        marginal = self.probabilities[filled] / count[:, None]
        entropy = -torch.special.xlogy(marginal, marginal).sum(1)
        return (self.negative_entropy[filled] / count + entropy).exp().mean()

    def _splits(self, logits: Tensor, indices: Tensor | None) -> Tensor:
        if self.num_splits == 1 and self.split_size is None:
            return torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
        if indices is None:
            raise UserError(f"an inception score of {self.num_splits} splits needs the images' positions: give indices")
        splits = indices % self.num_splits if self.split_size is None else indices // self.split_size
        if len(splits) and int(splits.max()) >= self.num_splits:
            raise UserError(
                f"image {int(indices.max())} lies after {self.num_splits} splits of {self.split_size} images: "
                "there are more images than announced"
            )
        return splits
