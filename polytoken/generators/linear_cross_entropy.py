"""Cross-entropy of a linear layer whose logits are computed and freed chunk by chunk."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from polytoken.precision import autocasts

MAX_LOGITS = 2**24
"""Logits held at a time: 64 MB in float32."""


def linear_cross_entropy(
    features: Tensor, weight: Tensor, targets: Tensor, max_logits: int = MAX_LOGITS, bias: Tensor | None = None
) -> Tensor:
    """Return the mean cross-entropy, in nats, of ``features @ weight.T + bias`` against targets.

    Args:
        features: (M, dim).
        weight: (K, dim) of the output layer.
        targets: (M,) int64.
        max_logits: entries of the (M, K) logits held at a time, forward and backward.
        bias: (K,) of the output layer, if it has one.

    Returns:
        A float32 scalar; softmax and sums are float32 for any type of the product.
    """
    count = features.shape[0]
    rows = max(1, max_logits // weight.shape[0])
    if rows >= count:
        return _sum_of_chunk(features, weight, targets, bias) / count
    if _torch_has_it() and features.dtype == torch.float32 and not autocasts(features.device):
        # not in bfloat16, where it sums the loss in bfloat16 as well: 0.18 nats off in a trial with 512 rows
        options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=rows, chunking_method=None)
        return functional.linear_cross_entropy(features, weight, targets, linear_bias=bias, options=options)
    return _recomputed(features, weight, targets, rows, bias)


def _torch_has_it() -> bool:
    return hasattr(functional, "linear_cross_entropy") and hasattr(torch.nn, "LinearCrossEntropyOptions")  # not 2.11


def _recomputed(features: Tensor, weight: Tensor, targets: Tensor, rows: int, bias: Tensor | None) -> Tensor:
    """Chunks of ``rows``, their logits computed a second time in backward."""
    total = torch.zeros((), device=features.device)
    for start in range(0, len(features), rows):
        chunk = (features[start : start + rows], weight, targets[start : start + rows], bias)
        if torch.is_grad_enabled():
            kept = checkpoint(_sum_of_chunk, *chunk, use_reentrant=False, preserve_rng_state=False)
            total = total + cast(Tensor, kept)
        else:
            total = total + _sum_of_chunk(*chunk)
    return total / len(features)


def _sum_of_chunk(features: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None) -> Tensor:
    if autocasts(features.device):
        # autocast itself would cast the weight once and add up the chunks' gradients in bfloat16
        dtype = torch.get_autocast_dtype(features.device.type)
        features, weight = (value.to(dtype) for value in (features, weight))
        bias = None if bias is None else bias.to(dtype)
    return functional.cross_entropy(functional.linear(features, weight, bias).float(), targets, reduction="sum")
