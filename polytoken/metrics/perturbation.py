"""Codes replaced by near neighbours, as a generator's errors would replace them (pFID, arXiv 2503.08354)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from polytoken.neighbours import neighbours_of_codes
from polytoken.quantizers.base import Quantizer
from polytoken.ranges import LARGEST_SEED, at_least, within
from polytoken.sampling.row_noise import RowNoise

REPLACED, DRAWN, CHOSEN = range(3)  # keys of the noise


@dataclass(frozen=True)
class Perturbation:
    """Latent perturbation of RobusTok (arXiv 2509.12474; 2503.08354).

    In a share β of the images, each code is replaced with probability α by a uniform draw from the δ codes of its
    codebook that are nearest to it. The code itself is one of them, as in the paper's definition, so that a share
    αβ(1 − 1/δ) of the codes changes. Each sub-code of a position, and each scale, counts as a code of its own.

    Args:
        alpha: α.
        beta: β.
        delta: δ; of a smaller codebook, all codes.
        seed: of the draws.
    """

    alpha: float = 0.5
    beta: float = 1.0
    delta: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        within(0, 1, self, alpha=self.alpha, beta=self.beta)
        at_least(1, self, delta=self.delta)
        within(0, LARGEST_SEED, self, seed=self.seed)


class CodePerturbation:
    """Replaces the codes of any quantizer.

    Noise is a function of seed, image, sub-code and position: values repeat, and depend neither on batches nor on
    ranks.

    Args:
        quantizer: whose codes they are; distances are those of its ``codebooks``.
        settings: how many are replaced, and by which.
    """

    def __init__(self, quantizer: Quantizer, settings: Perturbation) -> None:
        self.settings = settings
        self.neighbours = [NearestCodes(codebook, settings.delta) for codebook in quantizer.codebooks()]

    def __call__(self, codes: Tensor, indices: Tensor) -> Tensor:
        """Codes (B, k, N) of images of these indices (B,) in their set, to codes of the same shape."""
        noise, shape = RowNoise.at(self.settings.seed, indices), tuple(codes.shape[1:])
        replaced = noise.uniform((REPLACED,), *shape) < self.settings.alpha
        replaced &= noise.uniform((CHOSEN,), 1, 1) < self.settings.beta
        drawn = noise.uniform((DRAWN,), *shape)
        parts = [
            nearest(part, (draw * nearest.delta).long())
            for nearest, part, draw in zip(self.neighbours, codes.unbind(1), drawn.unbind(1), strict=True)
        ]
        return torch.where(replaced, torch.stack(parts, dim=1), codes)


class NearestCodes:
    """The δ codes nearest to each code of a codebook, by exact search for the codes that are asked for.

    Args:
        codebook: (K, d).
        delta: δ, at most K.
        max_matrix_elements: the most entries of the (codes × K) matrix of distances ever held at once.
    """

    def __init__(self, codebook: Tensor, delta: int, max_matrix_elements: int = 2**22) -> None:
        size = len(codebook)
        self.delta = min(delta, size)
        self._codebook = codebook.double()
        self._rows = max(1, max_matrix_elements // size)
        self._table = torch.zeros(size, self.delta, dtype=torch.int32, device=codebook.device)
        self._known = torch.zeros(size, dtype=torch.bool, device=codebook.device)

    def __call__(self, codes: Tensor, ranks: Tensor) -> Tensor:
        """The neighbour of each of these codes that has this rank, 0 … δ − 1; any shape, and that of the result."""
        missing = codes[~self._known[codes]].unique()
        for rows in missing.split(self._rows):
            self._table[rows] = neighbours_of_codes(self._codebook, rows, self.delta).int()
        self._known[missing] = True
        return self._table[codes, ranks].long()
