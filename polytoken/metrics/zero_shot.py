"""Zero-shot classification: pooled features of images against class vectors (arXiv 2103.00020; Ideal, Table 3)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional
from torchmetrics import Metric

from polytoken.errors import UserError
from polytoken.metrics.probes import Accuracy
from polytoken.precision import full_precision

RANKS = (1, 5)


class ZeroShot(Metric):
    """Share of images whose class is among the 1 and the 5 nearest class vectors, by cosine similarity.

    With fewer than five classes the second share is 1.

    Args:
        vectors: (C, D) unit vectors in the order of the labels.
    """

    full_state_update = False
    correct: Tensor  # of each of RANKS
    n: Tensor

    def __init__(self, vectors: Tensor) -> None:
        super().__init__()
        self.register_buffer("vectors", vectors.float(), persistent=False)
        self.add_state("correct", torch.zeros(len(RANKS), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("n", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    @torch.no_grad()
    def update(self, pooled: Tensor, labels: Tensor) -> None:
        """Add pooled features (B, D) with labels (B,).

        Raises:
            UserError: if they are not finite.
        """
        if not bool(pooled.isfinite().all()):
            raise UserError("pooled features are not finite, so they have no nearest class: train the tokenizer again")
        with full_precision(pooled.device):
            scores = functional.normalize(pooled.float(), dim=-1) @ self.vectors.T  # type: ignore[operator]
        nearest = scores.topk(min(max(RANKS), scores.shape[1])).indices
        hits = nearest == labels.unsqueeze(1)
        self.correct += torch.stack([hits[:, :rank].any(1).sum() for rank in RANKS])
        self.n += len(labels)

    def compute(self) -> dict[str, Accuracy]:
        """Shares by name, `top1` and `top5`, with their standard errors.

        Raises:
            UserError: if there were no images.
        """
        count = int(self.n)
        if not count:
            raise UserError("no images were classified: name a data set with validation images")
        shares = {f"top{rank}": correct / count for rank, correct in zip(RANKS, self.correct.tolist(), strict=True)}
        return {name: Accuracy(share, math.sqrt(share * (1 - share) / count)) for name, share in shares.items()}
