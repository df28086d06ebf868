"""Finite scalar quantization: every channel rounded to its own few levels (FSQ, arXiv 2309.15505; iFSQ, 2601.17124)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from polytoken.precision import full_precision
from polytoken.quantizers.base import Quantizer
from polytoken.quantizers.digits import Order, codes_to_digits, digits_to_codes, sub_code_sizes
from polytoken.ranges import above
from polytoken.specs import Encoding

Cells = Literal["rounding", "equal", "offset"]


class FiniteScalarQuantizer(Quantizer):
    """FSQ (``alpha`` 2, the hyperbolic tangent) and iFSQ (``alpha`` 1.6); no codebook to learn, and so no losses.

    iFSQ Algorithm 1: bound, round, and pass gradients through the rounding unchanged, ẑ = f(z) + sg(z_q − f(z)).

    Args:
        levels: L of each of the d channels, odd or even; (17, 17, 17, 17) is the paper's 4 bits.
        alpha: steepness α of the bound f(z) = 2σ(αz) − 1.
        cells: "rounding" is the published rule, whose two outer cells are half as wide as the others; "equal" cuts
            [−1, 1] into L equal cells and returns their mid-points; "offset" is the rule of FSQ's own code, for its
            checkpoints (with ``alpha`` 2). docs/finite_scalar.md says which suits which α.
        order: "big_endian" is the paper's eq. 3, channel 1 most significant; "little_endian" is the released code's.
        num_sub_codes: k, the sub-codes of d/k consecutive channels each.

    Raises:
        UserError: if a level is below 2, k does not divide d, or a sub-code has too many values.
    """

    levels: Tensor

    def __init__(
        self,
        levels: Sequence[int] = (17, 17, 17, 17),
        alpha: float = 1.6,
        cells: Cells = "rounding",
        order: Order = "big_endian",
        num_sub_codes: int = 1,
    ) -> None:
        sizes = sub_code_sizes(levels, num_sub_codes)
        above(0, self, alpha=alpha)  # 1.6 is iFSQ, 2.0 is FSQ
        super().__init__((len(levels),), (len(levels) // num_sub_codes,) * num_sub_codes, sizes)
        self.alpha = alpha
        self.cells: Cells = cells
        self.order: Order = order
        # (k, d/k); set by the configuration, so checkpoints leave it out
        self.register_buffer("levels", torch.tensor(levels).view(num_sub_codes, -1), persistent=False)

    def forward(self, features: Tensor) -> Encoding:
        """Features (B, d, h, w) to codes (B, k, h·w) and their vectors (B, d, h, w) float32."""
        with full_precision(features.device):
            bounded = self._bound(features.float())
            digits = vectors_to_digits(self._to_rows(bounded.detach()), self.levels, self.cells)
            vectors = self._to_map(digits_to_vectors(digits, self.levels, self.cells), bounded.shape[2:])
            quantized = bounded + (vectors - bounded).detach()
        return Encoding(
            codes=digits_to_codes(digits, self.levels, self.order).transpose(1, 2),
            quantized=quantized,
            subspaces=quantized.split(self.subspace_channels, dim=1),
            latents=bounded.split(self.subspace_channels, dim=1),
        )

    def digits(self, latents: Tensor) -> Tensor:
        """Levels (n, d) 0 … L − 1 of bounded latents (n, d)."""
        return vectors_to_digits(latents, self.levels.flatten(), self.cells)

    def embed_codes(self, codes: Tensor, grid: tuple[int, int]) -> Tensor:
        """Codes (B, k, h·w) to their vectors (B, d, h, w) float32."""
        self.check_codes(codes, grid)
        digits = codes_to_digits(codes.transpose(1, 2), self.levels, self.order)
        return self._to_map(digits_to_vectors(digits, self.levels, self.cells), grid)

    def snap(self, quantized: Tensor) -> Tensor:
        """Vectors (B, d, h, w) of any size to the nearest points of the grid, float32."""
        rows = self._to_rows(quantized.float().clamp(-1, 1))
        digits = vectors_to_digits(rows, self.levels, self.cells)
        return self._to_map(digits_to_vectors(digits, self.levels, self.cells), quantized.shape[2:])

    def _bound(self, features: Tensor) -> Tensor:
        """Features (B, d, h, w) to latents in [−1, 1]."""
        if self.cells == "offset":
            return offset_bound(features, self.levels.view(-1, 1, 1), self.alpha)
        return bound(features, self.alpha)

    def _to_rows(self, maps: Tensor) -> Tensor:
        """(B, d, h, w) to (B, h·w, k, d/k)."""
        return maps.flatten(2).transpose(1, 2).unflatten(2, self.levels.shape)

    def _to_map(self, rows: Tensor, grid: Sequence[int]) -> Tensor:
        """(B, h·w, k, d/k) to (B, d, h, w)."""
        return rows.flatten(2).transpose(1, 2).unflatten(2, tuple(grid))


def bound(latents: Tensor, alpha: float) -> Tensor:
    """f(z) = 2σ(αz) − 1 in (−1, 1) (iFSQ eq. 4), computed as tanh(αz/2), which is exact near 0 where 2σ − 1 cancels."""
    return torch.tanh(latents * (alpha / 2))


def offset_bound(latents: Tensor, levels: Tensor, alpha: float = 2.0) -> Tensor:
    """The bound of FSQ's code (arXiv 2309.15505, appendix A): even L keep the level 0, and −1 lies below it alone.

    (tanh(αz/2 + s) · (1 + ε)(L − 1)/2 − o) / ⌊L/2⌋ with ε = 0.001, o = 1/2 for even L, else 0, and s such that 0
    stays 0.

    Args:
        latents: z, any floating type.
        levels: L, integers that broadcast against ``latents``.
        alpha: 2 in FSQ.
    """
    half, offset = (levels - 1) * (1.001 / 2), (1 - levels % 2) / 2
    shift = torch.atanh(offset / half)
    return (torch.tanh(latents * (alpha / 2) + shift) * half - offset) / (levels // 2)


def vectors_to_digits(vectors: Tensor, levels: Tensor, cells: Cells = "rounding") -> Tensor:
    """Digit 0 … L − 1 of every channel (iFSQ eq. 1).

    "rounding" is eq. 1, round(h(v + 1)) with h = (L − 1)/2. Algorithm 1 rounds hv, which is the same for odd L; for
    even L, where h is half an integer, it would reach L + 1 levels, while eq. 1 reaches the L that are meant, half a
    level off 0, as the offset of the first FSQ does.

    Args:
        vectors: (…, d) in [−1, 1], any floating type.
        levels: (d,), or any shape that broadcasts against ``vectors``.
        cells: see :class:`FiniteScalarQuantizer`.

    Returns:
        (…, d) int64.
    """
    if cells == "offset":
        half = levels // 2
        return torch.minimum((torch.round(vectors * half) + half).long().clamp_min(0), levels - 1)
    if cells == "rounding":
        return torch.round((vectors + 1) * ((levels - 1) / 2)).long()
    return torch.minimum(((vectors + 1) * (levels / 2)).long(), levels - 1)  # v = 1 belongs to the last cell


def digits_to_vectors(digits: Tensor, levels: Tensor, cells: Cells = "rounding") -> Tensor:
    """Inverse of :func:`vectors_to_digits` on the vectors it can return; (…, d) in [−1, 1], float32.

    "rounding" spreads the levels from −1 to 1 (iFSQ eq. 2); "equal" returns mid-points, 1/L away from both ends.
    "offset" has 0 among the levels of even L too, and 1 among those of odd L only.
    """
    if cells == "offset":
        return (digits - levels // 2) / (levels // 2)
    if cells == "rounding":
        return (2 * digits - (levels - 1)) / (levels - 1)
    return (2 * digits - (levels - 1)) / levels
