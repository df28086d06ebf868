"""Similarity of two sets of features of the same images: CKNNA, linear CKA, cosines of subspaces."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from torchmetrics import Metric

from polytoken.errors import UserError


def cknna(first: Tensor, second: Tensor, k: int = 10, unit_rows: bool = True) -> Tensor:
    """CKNNA (arXiv 2405.07987, appendix A): alignment of the k nearest neighbours, at most 1; scalar float64.

    Kernels are products of rows, by the paper's protocol scaled to unit length. Pairs that are not neighbours in both
    sets are set to 0, and an unbiased HSIC is divided by those of each kernel with its own neighbours. The value
    depends on n and k: report both. NaN if the neighbours of one set carry no signal.

    Args:
        first: features (n, d₁).
        second: features (n, d₂) of the same images.
        k: number of neighbours.
        unit_rows: scale each row to unit length first; iFSQ's released code does not.

    Raises:
        UserError: if k is below 2, there are at most k or 3 images, or their numbers differ.
    """
    count = _count(first, second)
    if k < 2:
        raise UserError(f"CKNNA with k={k}: set k to 2 or more")
    if count <= max(k, 3):
        raise UserError(f"CKNNA with k={k} needs more than {max(k, 3)} images, got {count}: measure more, or lower k")
    one, other = (_kernel(features.double(), unit_rows) for features in (first, second))
    near_one, near_other = _neighbours(one, k), _neighbours(other, k)
    shared = near_one & near_other
    own = _unbiased_hsic(one * near_one, one * near_one) * _unbiased_hsic(other * near_other, other * near_other)
    return _unbiased_hsic(one * shared, other * shared) / (own.sqrt() + 1e-6)


def _kernel(rows: Tensor, unit_rows: bool) -> Tensor:
    """Products (n, n) of rows (n, d)."""
    if unit_rows:
        rows = functional.normalize(rows, dim=1)
    return rows @ rows.T


def linear_cka(first: Tensor, second: Tensor) -> Tensor:
    """Linear CKA (arXiv 1905.00414, eq. 3 with linear kernels) of features (n, d₁) and (n, d₂): 0 … 1, float64.

    It is not corrected for bias, and so far from 0 for independent features unless n is much greater than both widths.
    NaN if one set does not vary.

    Raises:
        UserError: if the numbers of images differ.
    """
    _count(first, second)
    one, other = (features.double() - features.double().mean(0) for features in (first, second))
    shared = (one.T @ other).square().sum()
    return shared / ((one.T @ one).square().sum() * (other.T @ other).square().sum()).sqrt()


class SubspaceCosines(Metric):
    """Cosine of the vectors of two subspaces at the same position: mean and mean square of each pair.

    Pairs of unequal width have none. Sums over batches and ranks are float64.

    Args:
        num_subspaces: k.
    """

    full_state_update = False
    count: Tensor
    cosines: Tensor
    squares: Tensor

    def __init__(self, num_subspaces: int) -> None:
        super().__init__()
        shape = (num_subspaces, num_subspaces)
        self.add_state("count", torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("cosines", torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("squares", torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, subspaces: tuple[Tensor, ...]) -> None:
        """Add the k subspaces' vectors (B, d, h, w)."""
        unit = [functional.normalize(subspace.float(), dim=1) for subspace in subspaces]
        for row, one in enumerate(unit):
            for column, other in enumerate(unit):
                if one.shape == other.shape:
                    cosine = (one * other).sum(1).double()
                    self.count[row, column] += cosine.numel()
                    self.cosines[row, column] += cosine.sum()
                    self.squares[row, column] += cosine.square().sum()

    def compute(self) -> tuple[Tensor, Tensor]:
        """Mean cosine and mean squared cosine (k, k), float64; NaN for unequal widths."""
        return self.cosines / self.count, self.squares / self.count


def _count(first: Tensor, second: Tensor) -> int:
    if len(first) != len(second):
        raise UserError(f"features of {len(first)} and of {len(second)} images: give both of the same images")
    return len(first)


def _neighbours(kernel: Tensor, k: int) -> Tensor:
    """(n, n) bool: column j is among the k greatest of row i, without i itself."""
    nearest = kernel.clone().fill_diagonal_(-torch.inf).topk(k, dim=1).indices
    return torch.zeros_like(kernel, dtype=torch.bool).scatter_(1, nearest, True)


def _unbiased_hsic(first: Tensor, second: Tensor) -> Tensor:
    """Unbiased HSIC of two (n, n) kernels, which may be asymmetric."""
    count = len(first)
    one, other = first.clone().fill_diagonal_(0), second.clone().fill_diagonal_(0)
    trace = (one * other.T).sum()
    sums = one.sum() * other.sum() / ((count - 1) * (count - 2))
    chain = one.sum(0) @ other.sum(1)  # the sum of all entries of the product
    return (trace + sums - 2 * chain / (count - 2)) / (count * (count - 3))
