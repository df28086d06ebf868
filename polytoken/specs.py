"""Shapes and values that pass between tokenizer and generator: TokenSpec, LatentSpec, Tokens, Encoding, Decoded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain

from torch import Tensor

from polytoken.errors import UserError

BITS_PER_PIXEL = 24  # 8-bit RGB
BITS_PER_LATENT = 16  # float16 or bfloat16, as iFSQ appendix B counts them


@dataclass(frozen=True)
class TokenSpec:
    """Shape of an image's codes: k sub-codes at each of N positions.

    Args:
        codebook_sizes: K_1 … K_k, in the order visual, mid-level, high-level.
        scales: grid (h, w) of each scale, coarse first; one for most tokenizers. N = Σ h·w, row-major in a scale.

    Lists become tuples, so that equal specs compare equal.

    Raises:
        UserError: if there is no codebook or no scale, or one of the numbers is not positive.
    """

    codebook_sizes: tuple[int, ...]
    scales: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "codebook_sizes", tuple(self.codebook_sizes))
        object.__setattr__(self, "scales", tuple(tuple(grid) for grid in self.scales))
        numbers = (*self.codebook_sizes, *chain.from_iterable(self.scales))
        if not (self.codebook_sizes and self.scales) or min(numbers) < 1:
            raise UserError(
                f"a TokenSpec has codebooks of {[*self.codebook_sizes]} entries on grids {[*self.scales]}: it has at "
                "least one of each, and all numbers are at least 1"
            )

    @property
    def num_sub_codes(self) -> int:
        """The k sub-codes of a position."""
        return len(self.codebook_sizes)

    @property
    def num_positions(self) -> int:
        """N = Σ h·w over the scales."""
        return sum(height * width for height, width in self.scales)

    @property
    def bits_per_image(self) -> float:
        """N · Σ log₂ K_i: the size of the codes without entropy coding (the denominators of iFSQ eqs. 12 and 13)."""
        return self.num_positions * sum(math.log2(size) for size in self.codebook_sizes)

    def compression_ratio(self, image_size: int) -> float:
        """Bits of a square 8-bit RGB image over bits of its codes (iFSQ eqs. 12 and 13; K = L^d for FSQ).

        Args:
            image_size: pixels a side.
        """
        return compression(image_size, self.bits_per_image)

    def select(self, sub_codes: Sequence[int]) -> TokenSpec:
        """The spec of codes that keep only ``sub_codes``, in that order."""
        for index in sub_codes:
            if not 0 <= index < self.num_sub_codes:
                raise UserError(f"sub-code {index} does not exist: the codes have {self.num_sub_codes}, counted from 0")
        return TokenSpec(tuple(self.codebook_sizes[index] for index in sub_codes), self.scales)


@dataclass(frozen=True)
class LatentSpec:
    """Shape and scale of an image's continuous latents.

    Args:
        channels: C.
        grid: (h, w).
        mean: of each channel over the training latents.
        deviation: standard deviation of each channel over the training latents.

    Lists become tuples, as in :class:`TokenSpec`.

    Raises:
        UserError: if a size is not positive, or a statistic is missing or cannot normalise.
    """

    channels: int
    grid: tuple[int, int]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    def __post_init__(self) -> None:
        for name in ("grid", "mean", "deviation"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if min(self.channels, *self.grid) < 1:
            raise UserError(f"a LatentSpec has {self.channels} channels on a grid {self.grid}: all must be at least 1")
        if not len(self.mean) == len(self.deviation) == self.channels:
            raise UserError(
                f"a LatentSpec of {self.channels} channels needs as many means and deviations, "
                f"got {len(self.mean)} and {len(self.deviation)}"
            )
        for channel, (mean, deviation) in enumerate(zip(self.mean, self.deviation, strict=True)):
            if not (math.isfinite(mean) and 0 < deviation < math.inf):
                raise UserError(
                    f"channel {channel} of the latents has mean {mean} and deviation {deviation}, and normalising them "
                    "takes finite numbers and a deviation above 0: check the tokenizer, and write its store again"
                )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, h, w)."""
        return (self.channels, *self.grid)

    @property
    def bits_per_image(self) -> float:
        """h·w·C values of 16 bits (the denominator of iFSQ eq. 11)."""
        return latent_bits(self.shape)

    def compression_ratio(self, image_size: int) -> float:
        """Bits of a square 8-bit RGB image over bits of its latents (iFSQ eq. 11).

        Args:
            image_size: pixels a side.
        """
        return compression(image_size, self.bits_per_image)


@dataclass(frozen=True)
class Tokens:
    """Images as a generator reads and writes them: codes or latents, never both.

    Args:
        codes: (B, k, N) int64.
        latents: (B, C, h, w) float.
    """

    codes: Tensor | None = None
    latents: Tensor | None = None

    def __post_init__(self) -> None:
        if (self.codes is None) == (self.latents is None):
            raise ValueError("Tokens hold either codes or latents: give exactly one of them")


@dataclass
class Encoding:
    """Output of a quantizer.

    Args:
        codes: (B, k, N) int64, or None for a continuous bottleneck.
        quantized: (B, C, h, w), the input of the decoder.
        subspaces: the k straight-through outputs (B, d_i, h, w) of which ``quantized`` is the concatenation.
        losses: weighted scalars of the quantizer itself (codebook, commitment, entropy, KL); empty in eval mode.
        latents: the k encoder outputs (B, d_i, h, w) as they were compared with the codes, normalised if those are.
        code_vectors: the k code vectors (B, d_i, h, w) whose gradient reaches the codebooks; empty where none do.
        kept: (B,) bool, the samples of which no scale was dropped; None where none is ever dropped.
        features: what a frozen encoder computed of the images, by name, such as "deep": (B, D, h, w) without gradient.
    """

    codes: Tensor | None
    quantized: Tensor
    subspaces: tuple[Tensor, ...] = ()
    losses: dict[str, Tensor] = field(default_factory=dict)
    latents: tuple[Tensor, ...] = ()
    code_vectors: tuple[Tensor, ...] = ()
    kept: Tensor | None = None
    features: dict[str, Tensor] = field(default_factory=dict)

    def rows(self, mask: Tensor) -> Encoding:
        """The encoding of the images that ``mask`` (B,) selects; without the losses, which belong to the batch."""
        return Encoding(
            codes=None if self.codes is None else self.codes[mask],
            quantized=self.quantized[mask],
            subspaces=tuple(subspace[mask] for subspace in self.subspaces),
            latents=tuple(latent[mask] for latent in self.latents),
            code_vectors=tuple(vector[mask] for vector in self.code_vectors),
            kept=None if self.kept is None else self.kept[mask],
            features={name: feature[mask] for name, feature in self.features.items()},
        )


@dataclass
class Decoded:
    """Output of a tokenizer's decoder.

    Args:
        image: (B, 3, H, W), not clamped.
        features: reconstructed features (B, D, h, w) by name, such as "deep"; empty where none are reconstructed.
    """

    image: Tensor
    features: dict[str, Tensor] = field(default_factory=dict)


def latent_bits(shape: tuple[int, int, int]) -> float:
    """Bits of latents (C, h, w) at 16 bits a value."""
    return float(math.prod(shape) * BITS_PER_LATENT)


def compression(image_size: int, bits: float) -> float:
    """Bits of a square 8-bit RGB image, ``image_size`` pixels a side, over ``bits`` of its codes or latents."""
    return image_size**2 * BITS_PER_PIXEL / bits
