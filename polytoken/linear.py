"""A product with few rows, which sampling is made of, at the rate at which memory gives the weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

MIN_ROWS, MAX_ROWS = 2, 7
"""Where the turned product is the faster one, by measurement; a single row is torch's own special case."""


def linear(features: Tensor, weight: Tensor) -> Tensor:
    """Multiply features (…, I) with the transposed weight (O, I) to (…, O).

    On a CPU, torch's float32 product of a few rows takes some four times as long as reading the weights; the same
    product turned around, W xᵀ, takes little longer than that (``benchmarks/generator.py``).
    """
    rows = features.numel() // features.shape[-1]
    sampling_on_cpu = weight.device.type == "cpu" and features.dtype == torch.float32 and not torch.is_grad_enabled()
    if not sampling_on_cpu or not MIN_ROWS <= rows <= MAX_ROWS:
        return functional.linear(features, weight)
    return torch.mm(weight, features.reshape(rows, -1).T).T.contiguous().unflatten(0, features.shape[:-1])


class Linear(nn.Linear):
    """A linear layer without bias by :func:`linear`.

    Args:
        in_features: I.
        out_features: O.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """(…, I) to (…, O)."""
        return linear(features, self.weight)
