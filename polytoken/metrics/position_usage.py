"""Use of the codes at each position, counted over a set of images."""

from __future__ import annotations

import torch
from torch import Tensor

from polytoken.specs import TokenSpec


class PositionUsage:
    """Occurrences of each code at each position.

    Args:
        spec: of the codes.
        device: of the counts, Σ N · K_i numbers of four bytes.
    """

    def __init__(self, spec: TokenSpec, device: torch.device | None = None) -> None:
        self._counts = [
            torch.zeros(spec.num_positions, size, dtype=torch.int32, device=device) for size in spec.codebook_sizes
        ]

    def update(self, codes: Tensor) -> None:
        """Count codes (B, k, N)."""
        for counts, part in zip(self._counts, codes.unbind(1), strict=True):
            counts.scatter_add_(1, part.T, torch.ones_like(part.T, dtype=counts.dtype))

    def compute(self) -> list[tuple[Tensor, Tensor]]:
        """For each sub-code, at each position (N,): share of the codes seen, at most n / K, and perplexity 2^H."""
        return [((counts > 0).double().mean(1), _perplexities(counts)) for counts in self._counts]


def _perplexities(counts: Tensor) -> Tensor:
    frequency = counts.double() / counts.sum(1, keepdim=True).clamp_min(1)
    return (-torch.special.xlogy(frequency, frequency).sum(1)).exp()
