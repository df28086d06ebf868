"""Dependency of sub-codes: mutual information of neighbouring positions and of branches (ImageFolder Fig. 2).

Entropies are plug-in estimates with Miller and Madow's first correction, (occupied cells − 1) / 2n nats. A baseline is
subtracted from the mutual information of the pairs: that of shuffled pairs, whose second code comes from the same
position of another image. It holds the rest of the bias, and what the position alone says about both codes. Dependent
codes occupy fewer cells than shuffled ones and have less bias, so the difference is too low where the baseline is not
small.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["neighbours", "branches"]
MOST_CELLS = 2**24  # of a table of counts; beyond it, pairs are sorted


@dataclass(frozen=True)
class Dependence:
    """Mutual information of two sub-codes in bits, over the positions of a scale, or as a mean over scales.

    Args:
        kind: ``neighbours`` are one sub-code at horizontally neighbouring positions, ``branches`` two at one position.
        sub_codes: numbers of both; equal for neighbours.
        scale: number of the scale from 0, or None for the mean.
        bits: the estimate: that of the pairs minus ``baseline``.
        baseline: mean over shuffles.
        deviation: standard deviation of the shuffles, which is the error of an estimate of 0.
        entropy: the smaller entropy of both sub-codes, which bounds the mutual information.
        pairs: n; pairs of one image are not independent.
    """

    kind: Kind
    sub_codes: tuple[int, int]
    scale: int | None
    bits: float
    baseline: float
    deviation: float
    entropy: float
    pairs: int


def dependencies(
    codes: Tensor, scales: Sequence[tuple[int, int]], num_shuffles: int = 10, seed: int = 0
) -> Iterator[Dependence]:
    """Dependence of all neighbours and branches: of each scale, then the means over scales.

    A mean weighs scales by their positions and omits those one position wide, which have no neighbours.

    Args:
        codes: (images, views, k, N) integers, coarse scale first.
        scales: grid (h, w) of each scale.
        num_shuffles: shuffles of the baseline, at least 2.
        seed: of the shuffles.
    """
    generator = torch.Generator().manual_seed(seed)
    parts = codes.split([height * width for height, width in scales], dim=3)
    maps = [part.unflatten(3, scale) for part, scale in zip(parts, scales, strict=True)]
    wide = [scale for scale, (_, width) in enumerate(scales) if width > 1]
    for kind, one, other in _kinds(codes.shape[2]):
        found = {}
        for scale, grid in enumerate(maps):
            first, second = grid[:, :, one], grid[:, :, other]
            if kind == "neighbours":
                if scale not in wide:
                    continue
                first, second = first[..., :-1], second[..., 1:]
            shuffled, numbers = _measure(first.flatten(1), second.flatten(1), num_shuffles, generator)
            found[scale] = Dependence(kind, (one, other), scale, *shuffled, *numbers)
        yield from found.values()
        if wide:
            yield _mean([found[scale] for scale in wide], [math.prod(scales[scale]) for scale in wide])


def mutual_information(first: Tensor, second: Tensor) -> float:
    """Mutual information in bits of pairs of integers ≥ 0, (n,) each, with Miller and Madow's correction."""
    return entropy(first) + entropy(second) - entropy(first.long() * (int(second.max()) + 1) + second)


def entropy(codes: Tensor) -> float:
    """Entropy in bits of integers (n,) ≥ 0, with Miller and Madow's correction."""
    dense = int(codes.max()) < MOST_CELLS
    counts = torch.bincount(codes) if dense else torch.unique(codes, return_counts=True)[1]
    counts = counts[counts > 0].double()
    shares = counts / len(codes)
    return float(-(shares * shares.log()).sum() + (len(counts) - 1) / (2 * len(codes))) / math.log(2)


def _kinds(num_sub_codes: int) -> Iterator[tuple[Kind, int, int]]:
    for index in range(num_sub_codes):
        yield "neighbours", index, index
    for one, other in combinations(range(num_sub_codes), 2):
        yield "branches", one, other


def _measure(
    first: Tensor, second: Tensor, num_shuffles: int, generator: torch.Generator
) -> tuple[tuple[float, float, float], tuple[float, int]]:
    """Bits, baseline and deviation, and entropy and number, of pairs (images, m) of codes."""
    marginals = entropy(first.flatten()), entropy(second.flatten())  # no shuffle changes them
    keys, size = first.long() * (int(second.max()) + 1), len(first)

    def bits(others: Tensor) -> float:
        return sum(marginals) - entropy((keys + others).flatten())

    shuffled = []
    for _ in range(num_shuffles):
        order = torch.randperm(size, generator=generator)
        partner = torch.empty_like(order).scatter_(0, order, order.roll(1))  # one cycle, so that none is its own
        shuffled.append(bits(second[partner]))
    deviation, baseline = torch.std_mean(torch.tensor(shuffled, dtype=torch.float64))
    observed = bits(second)
    return (observed - float(baseline), float(baseline), float(deviation)), (min(marginals), first.numel())


def _mean(parts: Sequence[Dependence], weights: Sequence[int]) -> Dependence:
    """Mean over scales; errors of different scales count as independent."""
    shares = [weight / sum(weights) for weight in weights]

    def mean(name: str) -> float:
        return sum(share * getattr(part, name) for share, part in zip(shares, parts, strict=True))

    deviation = math.sqrt(sum((share * part.deviation) ** 2 for share, part in zip(shares, parts, strict=True)))
    pairs, (kind, sub_codes) = sum(part.pairs for part in parts), (parts[0].kind, parts[0].sub_codes)
    return Dependence(kind, sub_codes, None, mean("bits"), mean("baseline"), deviation, mean("entropy"), pairs)
