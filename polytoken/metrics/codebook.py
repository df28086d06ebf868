"""Codebook usage and perplexity, counted over a whole data set."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from polytoken.distributed import several_ranks, sum_over_ranks
from polytoken.metrics.gather import gather_rows


class CodebookMetrics(NamedTuple):
    """Result of :class:`CodebookStatistics`, one entry per codebook.

    Attributes:
        usage: share of the codes that were seen.
        perplexity: 2^H of the codes' frequencies, between 1 and K.
        dead: codes that were never seen.
        counts: (K,) int64, occurrences of each code.
    """

    usage: list[float]
    perplexity: list[float]
    dead: list[int]
    counts: list[Tensor]


class CodebookStatistics(Metric):
    """Occurrences of every code of k codebooks, summed over batches and ranks.

    Args:
        codebook_sizes: K_1 … K_k.
    """

    full_state_update = False
    counts: Tensor
    offsets: Tensor

    def __init__(self, codebook_sizes: Sequence[int]) -> None:
        super().__init__(dist_sync_fn=sum_over_ranks)
        self.codebook_sizes = tuple(codebook_sizes)
        self.register_buffer("offsets", code_offsets(self.codebook_sizes), persistent=False)
        self.add_state("counts", torch.zeros(sum(self.codebook_sizes), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, codes: Tensor) -> None:
        """Count codes (B, k, N)."""
        flat = codes + self.offsets[:, None]
        self.counts += torch.bincount(flat.flatten(), minlength=len(self.counts))

    def compute(self) -> CodebookMetrics:
        """Usage, perplexity and dead codes of each codebook."""
        counts = list(self.counts.split(self.codebook_sizes))
        seen = [int((one > 0).sum()) for one in counts]
        return CodebookMetrics(
            usage=[number / len(one) for number, one in zip(seen, counts, strict=True)],
            perplexity=[perplexity(one) for one in counts],
            dead=[len(one) - number for number, one in zip(seen, counts, strict=True)],
            counts=counts,
        )


class JointCodeStatistics:
    """Occurrences of the tuples of k sub-codes at a position, over batches and ranks.

    A tuple is one int64 while the product of the codebook sizes allows it, and a row of k codes where it does not
    (from five codebooks of 16,384 on). Only tuples that occur are held: at most one per position.

    Args:
        codebook_sizes: K_1 … K_k.
        device: device of the tuples.
    """

    def __init__(self, codebook_sizes: Sequence[int], device: torch.device | None = None) -> None:
        sizes = [int(size) for size in codebook_sizes]
        fits = prod(sizes) < 2**63
        strides = [prod(sizes[:index]) for index in range(len(sizes))]
        self._strides = torch.tensor(strides, device=device) if fits else None
        width = 1 if fits else len(sizes)
        self._keys = torch.zeros((0, width), dtype=torch.int64, device=device)
        self._counts = torch.zeros(0, dtype=torch.int64, device=device)
        self._pending: list[Tensor] = []

    def update(self, codes: Tensor) -> None:
        """Count the tuples of codes (B, k, N)."""
        rows = codes.transpose(1, 2).flatten(0, 1)
        self._pending.append(rows if self._strides is None else (rows * self._strides).sum(1, keepdim=True))
        # merging only when as much is pending as is held sorts each tuple a few times in all
        if sum(len(pending) for pending in self._pending) > max(2**20, len(self._keys)):
            self._merge()

    def compute(self) -> tuple[float, float]:
        """Distinct tuples per position, and 2^H of the tuples' frequencies; every rank must call it."""
        self._merge()
        gathered = gather_rows([torch.cat([self._keys, self._counts[:, None]], 1)], self._keys.device)
        _, counts = _add_up(gathered[:, :-1], gathered[:, -1])
        return len(counts) / max(int(counts.sum()), 1), perplexity(counts)

    def _merge(self) -> None:
        keys = torch.cat([self._keys, *self._pending])
        counts = torch.cat([self._counts, self._counts.new_ones(len(keys) - len(self._counts))])
        self._keys, self._counts = _add_up(keys, counts)
        self._pending = []


class RecentUsage:
    """Share of each codebook that the last steps used; stores one number per code.

    Args:
        codebook_sizes: K_1 … K_k.
        window: number of steps.
        device: device of the codes.
    """

    def __init__(self, codebook_sizes: Sequence[int], window: int, device: torch.device | None = None) -> None:
        self.codebook_sizes = tuple(codebook_sizes)
        self.window = window
        self.steps = 0
        self._offsets = code_offsets(self.codebook_sizes).to(device)
        self._last_seen = torch.full((sum(self.codebook_sizes),), -1, device=device)

    def update(self, codes: Tensor) -> None:
        """Record one step's codes (B, k, N)."""
        self._last_seen[(codes + self._offsets[:, None]).flatten()] = self.steps
        self.steps += 1

    def compute(self) -> list[Tensor]:
        """Shares over the last ``window`` steps, or over all of fewer; every rank must call it."""
        last_seen = self._last_seen.clone()
        if several_ranks():
            torch.distributed.all_reduce(last_seen, torch.distributed.ReduceOp.MAX)
        recent = last_seen >= max(0, self.steps - self.window)
        return [one.float().mean() for one in recent.split(self.codebook_sizes)]


def code_offsets(codebook_sizes: Sequence[int]) -> Tensor:
    """Offsets (k,) int64 of the codebooks when they are concatenated."""
    return torch.tensor([0, *codebook_sizes]).cumsum(0)[:-1]


def perplexity(counts: Tensor) -> float:
    """2^H of counts (n,): n if all are equal, 1 if only one is above 0."""
    frequency = counts.double() / counts.sum().clamp_min(1)
    return float((-torch.special.xlogy(frequency, frequency).sum()).exp())


def _add_up(keys: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct rows of keys (n, w), and the sums of their counts (n,)."""
    if keys.shape[1] == 1:  # a plain sort, many times faster than one of rows
        flat, inverse = torch.unique(keys[:, 0], return_inverse=True)
        distinct = flat[:, None]
    else:
        distinct, inverse = torch.unique(keys, dim=0, return_inverse=True)
    return distinct, counts.new_zeros(len(distinct)).index_add_(0, inverse, counts)
