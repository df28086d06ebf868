"""Uniformity of bounded latents on [−1, 1] and over their levels (iFSQ, arXiv 2601.17124, eqs. 5–6, Fig. 2).

The functions are exact for samples; :class:`UniformityStatistics` measures whole data sets, over batches and ranks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor
from torchmetrics import Metric

from polytoken.distributed import sum_over_ranks


@runtime_checkable
class ScalarQuantizer(Protocol):
    """A quantizer that bounds every channel to [−1, 1] and rounds it to its levels."""

    levels: Tensor
    """L of the d channels, of any shape."""

    def digits(self, latents: Tensor) -> Tensor:
        """Levels (n, d) 0 … L − 1 of bounded latents (n, d)."""


class Uniformity(NamedTuple):
    """Means over channels.

    Attributes:
        ks: Kolmogorov–Smirnov distance to U(−1, 1), 0 … 1 (iFSQ eq. 6).
        rmse_uniform: root mean square distance to U(−1, 1) of sorted samples (iFSQ eq. 5).
        entropy_ratio: entropy of the levels over log L, 0 … 1.
        bins_hit: share of the L levels that occur.
    """

    ks: float
    rmse_uniform: float
    entropy_ratio: float
    bins_hit: float


def ks_to_uniform(samples: Tensor) -> Tensor:
    """Kolmogorov–Smirnov distance (iFSQ eq. 6) of samples (n,): sup_x |F(x) − (x + 1)/2|; scalar float64."""
    ideal = (samples.double().sort().values + 1) / 2
    ranks = torch.arange(len(samples) + 1, dtype=torch.float64, device=samples.device) / len(samples)
    return torch.maximum(ranks[1:] - ideal, ideal - ranks[:-1]).max()  # F jumps at each sample: compare both sides


def rmse_to_uniform(samples: Tensor) -> Tensor:
    """RMSE to U(−1, 1) (iFSQ eq. 5): root mean square of x_(i) − u_i for samples (n,); scalar float64.

    x_(i) is the i-th smallest sample and u_i = 2(i − ½)/n − 1. The paper does not define the ideal value of a sample;
    its quantile gives the smallest distance.
    """
    ranks = torch.arange(len(samples), dtype=torch.float64, device=samples.device)
    return (samples.double().sort().values - (2 * (ranks + 0.5) / len(samples) - 1)).square().mean().sqrt()


def entropy_ratio(counts: Tensor) -> Tensor:
    """Entropy of counts (L,) divided by its maximum log L; scalar float64."""
    frequency = counts.double() / counts.sum().clamp_min(1)
    return -torch.special.xlogy(frequency, frequency).sum() / math.log(len(counts))


def bins_hit(counts: Tensor) -> Tensor:
    """Share of counts (L,) above 0; scalar float64."""
    return (counts > 0).double().mean()


class UniformityStatistics(Metric):
    """:class:`Uniformity` of d channels, summed over batches and ranks.

    Values are counted in ``resolution`` equal bins of [−1, 1]: ``ks`` is at most 1/resolution too small and
    ``rmse_uniform`` at most 1/resolution off, for any number of values. Levels are counted exactly.

    Args:
        levels: L_1 … L_d.
        resolution: number of bins.
    """

    full_state_update = False
    value_counts: Tensor
    level_counts: Tensor

    def __init__(self, levels: Sequence[int], resolution: int = 4096) -> None:
        super().__init__(dist_sync_fn=sum_over_ranks)
        self.levels = tuple(levels)
        self.resolution = resolution
        channels = len(self.levels)
        zeros = torch.zeros(channels, resolution, dtype=torch.int64), torch.zeros(sum(levels), dtype=torch.int64)
        self.add_state("value_counts", zeros[0], dist_reduce_fx="sum")
        self.add_state("level_counts", zeros[1], dist_reduce_fx="sum")

    def update(self, values: Tensor, digits: Tensor) -> None:
        """Count values (n, d) in [−1, 1] and their levels (n, d) 0 … L − 1."""
        bins = ((values.double() + 1) * (self.resolution / 2)).long().clamp(0, self.resolution - 1)
        starts = torch.arange(len(self.levels), device=values.device)
        counts = torch.bincount((bins + starts * self.resolution).flatten(), minlength=self.value_counts.numel())
        self.value_counts += counts.view_as(self.value_counts)
        offsets = torch.tensor([0, *self.levels[:-1]], device=values.device).cumsum(0)
        self.level_counts += torch.bincount((digits + offsets).flatten(), minlength=len(self.level_counts))

    def compute(self) -> Uniformity:
        """Means over channels."""
        per_level = self.level_counts.split(self.levels)
        return Uniformity(
            ks=float(torch.stack([_histogram_ks(counts) for counts in self.value_counts]).mean()),
            rmse_uniform=float(torch.stack([_histogram_rmse(counts) for counts in self.value_counts]).mean()),
            entropy_ratio=float(torch.stack([entropy_ratio(counts) for counts in per_level]).mean()),
            bins_hit=float(torch.stack([bins_hit(counts) for counts in per_level]).mean()),
        )


def _histogram_ks(counts: Tensor) -> Tensor:
    """Distance at the edges of the bins, between which the distribution functions change by at most 1/len(counts)."""
    share = torch.arange(1, len(counts) + 1, dtype=torch.float64, device=counts.device) / len(counts)
    return (counts.cumsum(0).double() / counts.sum().clamp_min(1) - share).abs().max()


def _histogram_rmse(counts: Tensor) -> Tensor:
    """:func:`rmse_to_uniform` with each sample moved to the middle of its bin, by half a width at most.

    The c samples of a bin are paired with c neighbouring u_i, which spread around their mean by (2/n)²(c² − 1)/12.
    """
    total = counts.sum().clamp_min(1).double()
    size = len(counts)
    middles = (2 * torch.arange(size, dtype=torch.float64, device=counts.device) + 1) / size - 1
    after = counts.cumsum(0).double()
    ideal = (2 * after - counts) / total - 1
    spread = (2 / total) ** 2 * (counts.double() ** 2 - 1) / 12
    return (counts * ((ideal - middles).square() + spread)).sum().div(total).sqrt()
