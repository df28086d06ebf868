"""Fréchet distance between two sets of images in the features of any network (arXiv 1706.08500).

torch-fidelity needs all features of a set in memory and eigenvalues of a non-symmetric product; here float64 sums are
streamed over batches and ranks, and the eigendecompositions are symmetric.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from polytoken.distributed import sum_over_ranks
from polytoken.errors import UserError

ROUNDING = 1e-5  # of float32 files, as a share of the trace
TINY = 1e-30  # a constant feature has a variance of 0


class Gaussian(NamedTuple):
    """Mean and covariance of feature vectors, float64.

    Attributes:
        number: number of feature vectors; None if the file does not say (ADM's).
        mean: (D,).
        covariance: (D, D), the sum divided by ``number`` − 1.
    """

    number: int | None
    mean: Tensor
    covariance: Tensor

    @property
    def shortage(self) -> str | None:
        """Warning for at most as many vectors as dimensions, whose covariance is singular; None for more."""
        if self.number is None or self.number > len(self.mean):
            return None
        return (
            f"{self.number} images for {len(self.mean)} features: the covariance is singular and the Fréchet distance "
            "much too high; measure more images"
        )

    def to(self, device: torch.device) -> Gaussian:
        """Copy on another device."""
        return Gaussian(self.number, self.mean.to(device), self.covariance.to(device))


class FeatureStatistics(Metric):
    """Mean and covariance of feature vectors from float64 sums over batches and ranks.

    Args:
        num_features: D.
    """

    full_state_update = False
    count: Tensor
    total: Tensor
    outer: Tensor

    def __init__(self, num_features: int) -> None:
        super().__init__(dist_sync_fn=sum_over_ranks)
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros(num_features, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("outer", torch.zeros(num_features, num_features, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, features: Tensor) -> None:
        """Add features (B, D)."""
        rows = features.double()
        self.count += len(rows)
        self.total += rows.sum(0)
        self.outer += rows.T @ rows

    def compute(self) -> Gaussian:
        """Gaussian with their mean and covariance.

        Raises:
            UserError: for fewer than two vectors, which have no covariance.
        """
        count = int(self.count)
        if count < 2:
            raise UserError(f"a covariance of features needs at least 2 images, got {count}: measure more images")
        mean = self.total / count
        covariance = (self.outer - count * torch.outer(mean, mean)) / (count - 1)
        return Gaussian(count, mean, (covariance + covariance.T) / 2)


def frechet_distance(first: Gaussian, second: Gaussian) -> Tensor:
    """|μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2 (Σ₁ Σ₂)^½), a float64 scalar; FID and sFID of Inception's features.

    The trace of the last root is the sum of the singular values of Σ₁^½ Σ₂^½. Both roots come from symmetric
    eigendecompositions, so nothing is complex, and covariances of fewer images than features need no offset.

    Warns:
        UserWarning: if a Gaussian has at most as many images as features.

    Raises:
        UserError: if the two have different sizes, one is not finite, or the distance is below 0 by more than rounding.
    """
    if first.mean.shape != second.mean.shape:
        raise UserError(
            f"a Fréchet distance between {len(first.mean)} and {len(second.mean)} features: both sets must be measured "
            "by the same network"
        )
    for gaussian in (first, second):
        if not bool(gaussian.mean.isfinite().all() and gaussian.covariance.isfinite().all()):
            raise UserError("a Fréchet distance of features that are not finite: measure the images again")
        if gaussian.shortage is not None:
            warnings.warn(gaussian.shortage, stacklevel=2)
    shared = torch.linalg.svdvals(_root(first.covariance) @ _root(second.covariance)).sum()
    traces = first.covariance.trace() + second.covariance.trace()
    distance = (first.mean - second.mean).square().sum() + traces - 2 * shared
    if not bool(distance >= -ROUNDING * traces.abs()):
        raise UserError(
            f"a Fréchet distance is {float(distance):.4g}: a covariance is not positive semi-definite, so measure again"
        )
    return distance


def check_covariance(matrix: Tensor, name: str) -> None:
    """Raise UserError, naming the matrix (D, D), unless it is symmetric and positive semi-definite up to rounding."""
    scale = matrix.diagonal().abs().max()
    asymmetry = (matrix - matrix.T).abs().max()
    if not bool(asymmetry <= ROUNDING * scale):
        raise UserError(f"{name} is not symmetric, by {float(asymmetry):.4g}, and a covariance is")
    lifted = matrix + torch.eye(len(matrix), dtype=matrix.dtype) * (ROUNDING * matrix.diagonal().abs().sum() + TINY)
    if int(torch.linalg.cholesky_ex(lifted).info):  # a hundred times faster than eigenvalues
        raise UserError(f"{name} is not positive semi-definite, and a covariance is")


def _root(covariance: Tensor) -> Tensor:
    """Symmetric square root of a positive semi-definite matrix; eigenvalues rounded to below 0 count as 0."""
    values, vectors = torch.linalg.eigh(covariance.double())
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T
