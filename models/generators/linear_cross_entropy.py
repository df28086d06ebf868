"""Cross-entropy of a linear layer, its logits computed and dropped chunk by chunk."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

MAX_LOGITS = 2**24
"""Logits held at a time: 64 MB in float32."""


def linear_cross_entropy(features: Tensor, weight: Tensor, targets: Tensor, max_logits: int = MAX_LOGITS) -> Tensor:
    """Mean cross-entropy, in nats, of ``features @ weight.T`` against targets.

    Args:
        features: (M, dim).
        weight: (K, dim) of the output layer.
        targets: (M,) int64.
        max_logits: entries of the (M, K) logits held at a time, forward and backward.

    Returns:
        A float32 scalar; softmax and sums are float32 whatever the type of the product.
    """
    count = features.shape[0]
    rows = max(1, max_logits // weight.shape[0])
    if rows >= count:
        return _sum_of_chunk(features, weight, targets) / count
    total = torch.zeros((), device=features.device)
    for start in range(0, count, rows):
        chunk = (features[start : start + rows], weight, targets[start : start + rows])
        if torch.is_grad_enabled():
            total = total + cast(
                Tensor, checkpoint(_sum_of_chunk, *chunk, use_reentrant=False, preserve_rng_state=False)
            )
        else:
            total = total + _sum_of_chunk(*chunk)
    return total / count


def _sum_of_chunk(features: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(functional.linear(features, weight).float(), targets, reduction="sum")
