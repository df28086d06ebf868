"""Improved precision and recall of generated images (arXiv 1904.06991).

torch-fidelity holds at least one row of blocks of the distances on the CPU and takes ``torch.cdist`` as it comes; here
the memory is a few blocks, and the arithmetic is ADM's.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from polytoken.errors import UserError
from polytoken.precision import full_precision


class PrecisionRecall(NamedTuple):
    """Shares, 0 … 1.

    Attributes:
        precision: share of the generated images within a real image's ball.
        recall: share of the real images within a generated image's ball.
    """

    precision: float
    recall: float


def precision_recall(
    real: Tensor,
    generated: Tensor,
    neighbours: int = 3,
    block: int = 4096,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> PrecisionRecall:
    """Improved precision and recall (arXiv 1904.06991), as ADM's evaluator computes them.

    An image's ball reaches to its k-th nearest neighbour in its own set, without itself, and includes its surface.
    Squared distances are |a|² − 2 a·b + |b|² in ``dtype``, of features less the real mean, which cancels less; ADM's
    evaluator computes them in float16 where that does not overflow, so its shares may differ in a few images. Besides
    the features, a few blocks of block² distances and of rows are held at a time.

    Args:
        real: features (N, D) of real images; ADM's are 10,000 Inception ``pooled``.
        generated: features (M, D) of generated images; ADM's are 50,000.
        neighbours: k.
        block: rows per block.
        device: device of the distances; None is that of the features.
        dtype: dtype of the distances.

    Raises:
        UserError: if dimensions differ, a set has too few images for k neighbours, or values are not finite.
    """
    if real.ndim != 2 or generated.ndim != 2 or real.shape[1] != generated.shape[1]:
        raise UserError(
            f"precision and recall of features {tuple(real.shape)} and {tuple(generated.shape)}: both sets must be "
            "measured by the same network"
        )
    for name, features in (("real", real), ("generated", generated)):
        if len(features) <= neighbours:
            raise UserError(f"{len(features)} {name} images have no {neighbours} neighbours each: measure more")
        if not bool(torch.isfinite(features).all()):
            raise UserError(f"features of {name} images are not finite: measure them again")
    device = device or real.device
    real_blocks, generated_blocks = real.split(block), generated.split(block)
    centre = real.mean(0).to(device, dtype)

    def squared_distances(first: Tensor, second: Tensor) -> Tensor:
        """(n, D) and (m, D) to (n, m)."""
        rows, columns = first.to(device, dtype) - centre, second.to(device, dtype) - centre
        products = torch.addmm(rows.square().sum(1)[:, None], rows, columns.T, alpha=-2)
        return products.add_(columns.square().sum(1)).clamp_min_(0)

    def radii(blocks: tuple[Tensor, ...]) -> Tensor:
        """Squared distance (N,) of each row to its k-th nearest neighbour; the first neighbour is the row itself."""
        found = []
        for first in blocks:
            nearest = torch.empty(len(first), 0, device=device, dtype=dtype)
            for second in blocks:
                together = torch.cat((nearest, squared_distances(first, second)), 1)
                nearest = together.topk(min(neighbours + 1, together.shape[1]), largest=False).values
            found.append(nearest.amax(1))
        return torch.cat(found)

    with full_precision(device):
        real_radii = radii(real_blocks)
        generated_radii = radii(generated_blocks)
        covered = torch.zeros(len(real), dtype=torch.bool, device=device)
        inside = torch.zeros(len(generated), dtype=torch.bool, device=device)
        for i, first in enumerate(real_blocks):
            rows = slice(i * block, i * block + len(first))
            for j, second in enumerate(generated_blocks):
                columns = slice(j * block, j * block + len(second))
                squared = squared_distances(first, second)
                covered[rows] |= (squared <= generated_radii[columns]).any(1)
                inside[columns] |= (squared <= real_radii[rows, None]).any(0)
    return PrecisionRecall(inside.double().mean().item(), covered.double().mean().item())
