"""Principal components of feature vectors."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from polytoken.metrics.frechet import Gaussian

NEGLIGIBLE = 1e-12  # of the largest variance: rounding of the float64 sums


class PrincipalComponents(NamedTuple):
    """The directions of greatest variance, float64; components without variance are 0.

    Attributes:
        mean: (D,).
        directions: (D, n) of unit length, greatest variance first. The entry of greatest magnitude is positive, so that
            a rerun has the same signs.
        deviations: (n,), the standard deviation along each.
    """

    mean: Tensor
    directions: Tensor
    deviations: Tensor

    @classmethod
    def of(cls, statistics: Gaussian, number: int) -> PrincipalComponents:
        """The first ``number`` components of feature vectors with this mean and covariance."""
        variances, vectors = torch.linalg.eigh(statistics.covariance)  # smallest first
        variances, vectors = variances.flip(0)[:number], vectors.flip(1)[:, :number]
        strongest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
        real = variances > NEGLIGIBLE * variances[:1].clamp_min(torch.finfo(torch.float64).tiny)
        missing = number - len(variances)
        return cls(
            statistics.mean,
            functional.pad(vectors * strongest.sign() * real, (0, missing)),
            functional.pad(variances.clamp_min(0).sqrt() * real, (0, missing)),
        )

    def scores(self, rows: Tensor) -> Tensor:
        """Vectors (…, D) along the components (…, n), in standard deviations."""
        along = (rows.double() - self.mean) @ self.directions
        return along / torch.where(self.deviations > 0, self.deviations, 1.0)
