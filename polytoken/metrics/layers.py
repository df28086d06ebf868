"""Similarity of a generator's blocks to its output and to a teacher: STS, NTS, CKNNA (iFSQ section 4.2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torchmetrics import Metric

from polytoken.errors import UserError
from polytoken.metrics.gather import gather_rows
from polytoken.metrics.probes import Accuracy, Labelled, accuracy, logistic_regression, standardise
from polytoken.metrics.similarity import cknna, linear_cka


class TokenSimilarity(Metric):
    """STS and NTS of L blocks (iFSQ eqs. 7 and 8), averaged over positions and images.

    Both compare the output of a block with that of the last block *before* the final norm, a choice that the paper
    leaves open. STS of the last block is 1. Sums over batches and ranks are float64.

    Args:
        depth: L.
    """

    full_state_update = False
    count: Tensor
    same: Tensor
    following: Tensor

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.depth = depth
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("same", torch.zeros(depth, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("following", torch.zeros(depth, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, hidden: Mapping[int, Tensor]) -> None:
        """Add the outputs (B, N, width) of the blocks 1 … L."""
        last = _unit(hidden[self.depth])
        for block in range(1, self.depth + 1):
            one = _unit(hidden[block])
            self.same[block - 1] += (one * last).sum(2).mean(1).sum()
            self.following[block - 1] += (one[:, :-1] * last[:, 1:]).sum(2).mean(1).sum()
        self.count += len(last)

    def compute(self) -> tuple[Tensor, Tensor]:
        """STS and NTS (L,), float64; NTS of a single position is NaN."""
        return self.same / self.count, self.following / self.count


class LayerCurves(NamedTuple):
    """Similarities of the blocks 1 … L of a generator, one entry per block; NaN where one is not defined.

    Attributes:
        sts: self-token similarity (iFSQ eq. 7).
        nts: next-token similarity (iFSQ eq. 8).
        cknna: CKNNA of the mean over positions with the teacher's mean over patches.
        cka: linear CKA of the same features.
        correlation: Pearson correlation of NTS and CKNNA over the blocks.
        images: n; CKNNA compares at equal n and k only.
        positions: N of an image.
        k: neighbours of CKNNA.
        unit_rows: whether CKNNA is that of features of unit length.
        probe: accuracy of a linear probe for the class, or None.
    """

    sts: list[float]
    nts: list[float]
    cknna: list[float]
    cka: list[float]
    correlation: float
    images: int
    positions: int
    k: int
    unit_rows: bool
    probe: list[Accuracy] | None = None


class LayerStatistics:
    """Accumulates the outputs of all blocks, and the features of a teacher, for the same images.

    Args:
        depth: blocks L of the generator.
        device: device of the features.
        k: neighbours of CKNNA, at least 2.
        unit_rows: scale features to unit length for CKNNA.
    """

    def __init__(self, depth: int, device: torch.device, k: int = 10, unit_rows: bool = True) -> None:
        if k < 2:
            raise UserError(f"CKNNA with k={k}: set k to 2 or more")
        self.k, self.unit_rows = k, unit_rows
        self._device = device
        self._tokens = TokenSimilarity(depth).to(device)
        self._blocks: list[list[Tensor]] = [[] for _ in range(depth)]
        self._guide: list[Tensor] = []
        self._probed: list[list[Tensor]] = [[] for _ in range(depth)]
        self._labels: list[Tensor] = []
        self._positions = 0

    def update(self, hidden: Mapping[int, Tensor], guide: Tensor) -> None:
        """Add a batch.

        Args:
            hidden: outputs (B, N, width) of the blocks 1 … L.
            guide: the teacher's pooled features (B, D).
        """
        self._tokens.update(hidden)
        self._positions = hidden[1].shape[1]
        for block, kept in enumerate(self._blocks, 1):
            kept.append(_pooled(hidden[block]))
        self._guide.append(guide.float())

    def update_probe(self, hidden: Mapping[int, Tensor], labels: Tensor) -> None:
        """Add the outputs (B, N, width) of the blocks given the *null* class, and the labels (B,), for the probe.

        Given the class itself, every block holds it and a probe only reads it back.
        """
        for block, kept in enumerate(self._probed, 1):
            kept.append(_pooled(hidden[block]))
        self._labels.append(labels)

    def compute(self) -> LayerCurves:
        """Return the curves over all ranks; a collective that every rank must call.

        Raises:
            UserError: there are at most k images.
        """
        sts, nts = (values.reshape(-1) for values in self._tokens.compute())  # torchmetrics drops the axis of one block
        guide = gather_rows(self._guide, self._device)
        blocks = [gather_rows(kept, self._device) for kept in self._blocks]
        near = torch.stack([cknna(block, guide, self.k, self.unit_rows) for block in blocks]).to(nts)
        alike = torch.stack([linear_cka(block, guide) for block in blocks])
        labels = gather_rows(self._labels, self._device)
        probe = None
        if len(labels):  # of all ranks: one without rows of its own takes part in the gathers too
            probe = [half_probe(gather_rows(kept, self._device).cpu(), labels.cpu()) for kept in self._probed]
        return LayerCurves(
            sts=sts.tolist(),
            nts=nts.tolist(),
            cknna=near.tolist(),
            cka=alike.tolist(),
            correlation=float(pearson(nts, near)),
            images=len(guide),
            positions=self._positions,
            k=self.k,
            unit_rows=self.unit_rows,
            probe=probe,
        )


def pearson(first: Tensor, second: Tensor) -> Tensor:
    """Pearson correlation of (n,) and (n,), float64; NaN if one of them does not vary."""
    one, other = (values.double() - values.double().mean() for values in (first, second))
    return (one @ other) / (one.norm() * other.norm())


def half_probe(features: Tensor, labels: Tensor) -> Accuracy:
    """Accuracy of a linear probe, fitted to a random half of features (n, D) and tested on the other.

    Args:
        features: float32, on the CPU.
        labels: (n,) int64.

    Raises:
        UserError: all fitted rows have one class.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))  # labels may alternate
    fitted, tested = order.chunk(2)
    train, test = standardise(features[fitted], features[tested])
    return accuracy(logistic_regression(Labelled(train, labels[fitted]), test), labels[tested])


def _unit(hidden: Tensor) -> Tensor:
    return functional.normalize(hidden.double(), dim=2)


def _pooled(hidden: Tensor) -> Tensor:
    return hidden.float().mean(1)
