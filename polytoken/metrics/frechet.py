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

from polytoken.errors import UserError


class Gaussian(NamedTuple):
    """Mean and covariance of feature vectors, float64.

    Args:
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
        super().__init__()
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
        UserError: if the two have different sizes, or one is not finite.
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
    return (first.mean - second.mean).square().sum() + traces - 2 * shared


def _root(covariance: Tensor) -> Tensor:
    """Symmetric square root of a positive semi-definite matrix; eigenvalues rounded to below 0 count as 0."""
    values, vectors = torch.linalg.eigh(covariance.double())
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T
