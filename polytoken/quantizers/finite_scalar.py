"""Finite scalar quantization: every channel rounded to its own few levels (FSQ, arXiv 2309.15505; iFSQ, 2601.17124)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from polytoken.errors import UserError
from polytoken.quantizers.base import LatentHead, Quantizer
from polytoken.specs import Encoding

Cells = Literal["rounding", "equal"]
Order = Literal["big_endian", "little_endian"]

LARGEST_CODEBOOK = 2**17  # past it neither a softmax over the codes nor a count of them is sensible; 17⁴ is below


class FiniteScalarQuantizer(Quantizer):
    """FSQ (``alpha`` 2, the hyperbolic tangent) and iFSQ (``alpha`` 1.6); no codebook to learn, and so no losses.

    Gradients pass the rounding as if it were the identity: ẑ = f(z) + sg(z_q − f(z)).

    Args:
        in_channels: width of the base features.
        levels: L of each of the d channels, odd or even; (17, 17, 17, 17) is the paper's 4 bits.
        alpha: steepness α of the bound f(z) = 2σ(αz) − 1.
        cells: "rounding" is the published rule, whose two outer cells are half as wide as the others; "equal" cuts
            [−1, 1] into L equal cells and returns their mid-points. See docs/finite_scalar.md for which suits which α.
        order: "big_endian" is the paper's eq. 3, channel 1 most significant; "little_endian" is the released code's.
        groups: k, the sub-codes of d/k consecutive channels each.
        latent_channels: channels between the base features and the 1 × 1 ``quant_conv``.

    Raises:
        ValueError: if a level is below 2, ``groups`` does not divide d, or a group has too many codes.
    """

    levels: Tensor

    def __init__(
        self,
        in_channels: int = 512,
        levels: Sequence[int] = (17, 17, 17, 17),
        alpha: float = 1.6,
        cells: Cells = "rounding",
        order: Order = "big_endian",
        groups: int = 1,
        latent_channels: int = 256,
    ) -> None:
        sizes = group_sizes(levels, groups)
        if alpha <= 0:
            raise UserError(f"alpha must be above 0, got {alpha}: 1.6 is iFSQ, 2.0 is FSQ")
        super().__init__(in_channels, (len(levels) // groups,) * groups, sizes)
        self.alpha = alpha
        self.cells: Cells = cells
        self.order: Order = order
        self.head = LatentHead(in_channels, latent_channels, len(levels))
        # (k, d/k); the configuration says it, so a checkpoint need not
        self.register_buffer("levels", torch.tensor(levels).view(groups, -1), persistent=False)

    def forward(self, features: Tensor) -> Encoding:
        """Base features (B, in_channels, h, w) to codes (B, k, h·w) and their vectors (B, d, h, w) float32."""
        latents = self.head(features)
        with torch.autocast(latents.device.type, enabled=False):
            bounded = bound(latents.float(), self.alpha)
            digits = vectors_to_digits(self._to_rows(bounded.detach()), self.levels, self.cells)
            vectors = self._to_map(digits_to_vectors(digits, self.levels, self.cells), bounded.shape[2:])
            quantized = bounded + (vectors - bounded).detach()
        return Encoding(
            codes=digits_to_codes(digits, self.levels, self.order).transpose(1, 2),
            quantized=quantized,
            subspaces=quantized.split(self.subspace_channels, dim=1),
            latents=bounded.split(self.subspace_channels, dim=1),
        )

    def embed_codes(self, codes: Tensor, grid: tuple[int, int]) -> Tensor:
        """Codes (B, k, h·w) to their vectors (B, d, h, w) float32."""
        groups = len(self.levels)
        if codes.shape[1] != groups:
            raise UserError(f"codes carry {codes.shape[1]} sub-codes, this quantizer has groups={groups}")
        digits = codes_to_digits(codes.transpose(1, 2), self.levels, self.order)
        return self._to_map(digits_to_vectors(digits, self.levels, self.cells), grid)

    def _to_rows(self, maps: Tensor) -> Tensor:
        """(B, d, h, w) to (B, h·w, k, d/k)."""
        return maps.flatten(2).transpose(1, 2).unflatten(2, self.levels.shape)

    def _to_map(self, rows: Tensor, grid: Sequence[int]) -> Tensor:
        """(B, h·w, k, d/k) to (B, d, h, w)."""
        return rows.flatten(2).transpose(1, 2).unflatten(2, tuple(grid))


def group_sizes(levels: Sequence[int], groups: int) -> tuple[int, ...]:
    """K_1 … K_k: the codes of k groups of consecutive channels.

    Raises:
        ValueError: as the quantizer's.
    """
    if not levels or min(levels) < 2:
        raise UserError(f"levels must name at least 2 levels for each of one or more channels, got {list(levels)}")
    if groups < 1 or len(levels) % groups:
        raise UserError(
            f"groups={groups} does not divide the {len(levels)} channels that levels={list(levels)} names: "
            f"take one of {[divisor for divisor in range(1, len(levels) + 1) if len(levels) % divisor == 0]}"
        )
    width = len(levels) // groups
    sizes = tuple(math.prod(levels[first : first + width]) for first in range(0, len(levels), width))
    if max(sizes) > LARGEST_CODEBOOK:
        raise UserError(
            f"levels={list(levels)} with groups={groups} gives {max(sizes):,} codes in a group, more than "
            f"{LARGEST_CODEBOOK:,} a softmax can hold: raise groups, which splits the channels into sub-codes"
        )
    return sizes


def bound(latents: Tensor, alpha: float) -> Tensor:
    """f(z) = 2σ(αz) − 1 in (−1, 1), written as tanh(αz/2), which is exact near 0 where 2σ − 1 cancels (iFSQ eq. 4)."""
    return torch.tanh(latents * (alpha / 2))


def vectors_to_digits(vectors: Tensor, levels: Tensor, cells: Cells = "rounding") -> Tensor:
    """Level 0 … L − 1 of every channel.

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
    if cells == "rounding":
        return torch.round((vectors + 1) * ((levels - 1) / 2)).long()
    return torch.minimum(((vectors + 1) * (levels / 2)).long(), levels - 1)  # v = 1 belongs to the last cell


def digits_to_vectors(digits: Tensor, levels: Tensor, cells: Cells = "rounding") -> Tensor:
    """Inverse of :func:`vectors_to_digits` on the vectors it can return; (…, d) in [−1, 1], float32.

    "rounding" spreads the levels from −1 to 1 (eq. 2); "equal" returns mid-points, 1/L away from both ends.
    """
    if cells == "rounding":
        return (2 * digits - (levels - 1)) / (levels - 1)
    return (2 * digits - (levels - 1)) / levels


def digits_to_codes(digits: Tensor, levels: Tensor, order: Order = "big_endian") -> Tensor:
    """One number for all channels: Σ_j digit_j · Π of the levels less significant (iFSQ eq. 3); (…, d) to (…)."""
    return (digits * _place_values(levels, order)).sum(-1)


def codes_to_digits(codes: Tensor, levels: Tensor, order: Order = "big_endian") -> Tensor:
    """Inverse of :func:`digits_to_codes`; (…) to (…, d)."""
    return codes.unsqueeze(-1) // _place_values(levels, order) % levels


def _place_values(levels: Tensor, order: Order) -> Tensor:
    """What a digit of each channel counts: 1, L_1, L_1·L_2, … from the least significant end."""
    if order == "big_endian":
        return _place_values(levels.flip(-1), "little_endian").flip(-1)
    return torch.cumprod(levels, -1) // levels
