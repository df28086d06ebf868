"""Nearest codes of a codebook."""

from __future__ import annotations

import torch
from torch import Tensor


def neighbours_of_codes(codebook: Tensor, codes: Tensor, count: int) -> Tensor:
    """Return the codes (n, count) int64 whose vectors are nearest to those of codes (n,), the nearest first.

    Distances are Euclidean, computed in float64 and rounded to float32, so that neither batch nor device decides about
    equal ones: of those, the lower code is the nearer.

    Args:
        codebook: vectors (K, d).
        codes: those whose neighbours are searched; n · K distances are held at once.
        count: at most K. A code is its own nearest one, unless others have the same vector.
    """
    every = codebook.double()
    rows = every[codes]
    squares = rows.square().sum(1, keepdim=True) + every.square().sum(1) - 2 * rows @ every.T
    # the bits of floats of one sign order as the floats do; below them, the index orders equal ones
    bits = squares.abs().float().view(torch.int32).long()
    order = bits << 31 | torch.arange(len(every), device=codes.device)
    return order.topk(count, largest=False).values & (2**31 - 1)
