"""Cross-entropy of a linear layer whose logits are computed once, chunk by chunk (Liger Kernel, arXiv 2410.10989)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from polytoken.precision import autocasts

MAX_LOGITS = 2**24
"""Logits held at a time: 64 MB in float32."""


def linear_cross_entropy(
    features: Tensor, weight: Tensor, targets: Tensor, max_logits: int = MAX_LOGITS, bias: Tensor | None = None
) -> Tensor:
    """Return the mean cross-entropy, in nats, of ``features @ weight.T + bias`` against targets.

    Gradients are computed in forward, while a chunk's logits exist, and kept for backward: memory for them instead of
    a second product. They can be differentiated once.

    Args:
        features: (M, dim).
        weight: (K, dim) of the output layer.
        targets: (M,) int64.
        max_logits: entries of the (M, K) logits held at a time.
        bias: (K,) of the output layer, if it has one.

    Returns:
        A float32 scalar. Products are of autocast's type, or of the features'; softmax and sums are float32.
    """
    dtype = features.dtype
    if autocasts(features.device):
        dtype = torch.get_autocast_dtype(features.device.type)
    rows = max(1, max_logits // weight.shape[0])
    return _LinearCrossEntropy.apply(features, weight, bias, targets, rows, dtype, torch.is_grad_enabled())


class _LinearCrossEntropy(torch.autograd.Function):
    """Sums over chunks of ``rows``; the gradients that forward keeps are those of the sum of all rows."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        rows: int,
        dtype: torch.dtype,
        learns: bool,
    ) -> Tensor:
        of_features, of_weight, of_bias = (learns and needed for needed in ctx.needs_input_grad[:3])
        feature_gradient = torch.empty_like(features) if of_features else None
        weight_gradient = torch.zeros_like(weight, dtype=torch.float32) if of_weight else None
        bias_gradient = torch.zeros_like(weight[:, 0], dtype=torch.float32) if of_bias else None
        cast_weight, cast_bias = weight.to(dtype), None if bias is None else bias.to(dtype)
        total = torch.zeros((), device=features.device)
        for start in range(0, len(features), rows):
            chunk = slice(start, start + rows)
            read, chosen = features[chunk].to(dtype), targets[chunk].unsqueeze(1)
            logits = functional.linear(read, cast_weight, cast_bias)
            log_probabilities = functional.log_softmax(logits, dim=1, dtype=torch.float32)
            total -= log_probabilities.gather(1, chosen).sum()
            if not (of_features or of_weight or of_bias):
                continue
            error = log_probabilities.exp_().scatter_add_(1, chosen, -torch.ones_like(chosen, dtype=torch.float32))
            if bias_gradient is not None:
                bias_gradient += error.sum(0)
            error = error.to(dtype)
            if feature_gradient is not None:
                feature_gradient[chunk] = error @ cast_weight
            if weight_gradient is not None and dtype == torch.float32:
                torch.addmm(weight_gradient, error.T, read, out=weight_gradient)
            elif weight_gradient is not None:
                weight_gradient += error.T @ read  # added in float32
        ctx.save_for_backward(feature_gradient, weight_gradient, bias_gradient)
        ctx.count, ctx.dtype = len(features), weight.dtype
        return total / len(features)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        of_features, of_weight, of_bias = ctx.saved_tensors
        scale = gradient / ctx.count
        of_features = None if of_features is None else of_features * scale.to(of_features.dtype)
        of_weight, of_bias = (None if sums is None else (sums * scale).to(ctx.dtype) for sums in (of_weight, of_bias))
        return of_features, of_weight, of_bias, None, None, None, None
