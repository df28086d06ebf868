"""Kernel distance between two sets of images (KID, arXiv 1801.01401): unbiased, also for few images.

torch-fidelity computes it in float32 on the CPU; here it is float64 on the device of the features.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from polytoken.errors import UserError


class KernelDistance(NamedTuple):
    """Distance over random subsets.

    Attributes:
        mean: KID; slightly below 0 for similar sets, since the estimate is unbiased.
        deviation: standard deviation over the subsets.
    """

    mean: float
    deviation: float


def kernel_distance(
    first: Tensor, second: Tensor, num_subsets: int = 100, subset_size: int = 1000, seed: int = 2020
) -> KernelDistance:
    """Squared maximum mean discrepancy of random subsets under the kernel (a·b / D + 1)³, in float64.

    Defaults are torch-fidelity's; subsets are drawn without replacement by torch's generator instead of numpy's, which
    moves the mean by less than its deviation divided by √num_subsets, and nothing if a subset is the whole set.

    Args:
        first: features (N, D).
        second: features (M, D).
        num_subsets: number of subsets.
        subset_size: images of each set in a subset.
        seed: seed of the subsets.

    Raises:
        UserError: if dimensions differ, a set has fewer images than a subset, or values are not finite.
    """
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise UserError(
            f"a kernel distance of features {tuple(first.shape)} and {tuple(second.shape)}: both sets must be measured "
            "by the same network"
        )
    if subset_size < 2 or min(len(first), len(second)) < subset_size:
        raise UserError(
            f"{len(first)} and {len(second)} images for subsets of {subset_size}: measure more, or choose subset_size "
            "between 2 and the smaller number"
        )
    if not bool(torch.isfinite(first).all() and torch.isfinite(second).all()):
        raise UserError("a kernel distance of features that are not finite: measure the images again")
    generator = torch.Generator().manual_seed(seed)
    distances = torch.stack(
        [_discrepancy(*(_subset(rows, subset_size, generator) for rows in (first, second))) for _ in range(num_subsets)]
    )
    return KernelDistance(distances.mean().item(), distances.std(correction=0).item())


def _subset(rows: Tensor, size: int, generator: torch.Generator) -> Tensor:
    return rows[torch.randperm(len(rows), generator=generator)[:size].to(rows.device)].double()


def _discrepancy(first: Tensor, second: Tensor) -> Tensor:
    """Unbiased estimate from (m, D) twice, without pairs of an image with itself."""
    size = len(first)
    own = sum(kernel.sum() - kernel.trace() for kernel in (_kernel(first, first), _kernel(second, second)))
    return own / (size * (size - 1)) - 2 * _kernel(first, second).mean()


def _kernel(first: Tensor, second: Tensor) -> Tensor:
    return (first @ second.T / first.shape[1] + 1) ** 3
