"""How much of its codebooks a tokenizer uses, counted over a whole data set."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric


class CodebookStatistics(Metric):
    """Counts of every code of k codebooks; summed over batches and ranks.

    Args:
        codebook_sizes: K_1 … K_k.
    """

    full_state_update = False
    counts: Tensor
    offsets: Tensor

    def __init__(self, codebook_sizes: Sequence[int]) -> None:
        super().__init__()
        self.codebook_sizes = tuple(codebook_sizes)
        self.register_buffer("offsets", torch.tensor([0, *self.codebook_sizes]).cumsum(0)[:-1], persistent=False)
        self.add_state("counts", torch.zeros(sum(self.codebook_sizes), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, codes: Tensor) -> None:
        """Count codes (B, k, N)."""
        flat = codes + self.offsets[:, None]
        self.counts += torch.bincount(flat.flatten(), minlength=len(self.counts))

    def compute(self) -> dict[str, list[float]]:
        """Per codebook: ``usage`` share of codes seen, ``perplexity`` 2^H of their frequencies, ``dead`` codes."""
        result: dict[str, list[float]] = {"usage": [], "perplexity": [], "dead": []}
        for counts in self.counts.split(self.codebook_sizes):
            frequency = counts.double() / counts.sum().clamp_min(1)
            entropy = -torch.special.xlogy(frequency, frequency).sum()
            seen = int((counts > 0).sum())
            result["usage"].append(seen / len(counts))
            result["perplexity"].append(float(entropy.exp()))
            result["dead"].append(float(len(counts) - seen))
        return result
