"""What images become: TokenSpec, the shape of their codes, and Encoding, the codes with their vectors."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class TokenSpec:
    """Shape of an image's codes: k codebooks over N positions.

    Args:
        codebook_sizes: K_1 … K_k, in the order visual, mid-level, high-level.
        scales: grid (h, w) of each scale, coarse first; one for most tokenizers. N = Σ h·w, row-major in a scale.
    """

    codebook_sizes: tuple[int, ...]
    scales: tuple[tuple[int, int], ...]

    @property
    def num_sub_codes(self) -> int:
        """The k sub-codes of a position."""
        return len(self.codebook_sizes)

    @property
    def num_positions(self) -> int:
        """N = Σ h·w over the scales."""
        return sum(height * width for height, width in self.scales)

    def to_json(self) -> dict[str, list]:
        """Plain lists, for JSON."""
        return {"codebook_sizes": list(self.codebook_sizes), "scales": [list(scale) for scale in self.scales]}

    @classmethod
    def from_json(cls, value: dict[str, list]) -> TokenSpec:
        """Inverse of :meth:`to_json`."""
        return cls(tuple(value["codebook_sizes"]), tuple((height, width) for height, width in value["scales"]))


@dataclass
class Encoding:
    """What a bottleneck makes of a feature map.

    Args:
        codes: (B, k, N) int64, or None for a continuous bottleneck.
        quantized: (B, C, h, w), what the decoder reads.
        subspaces: the k straight-through outputs (B, d, h, w) of which ``quantized`` is the concatenation.
        losses: scalars the quantizer itself owes (codebook, commitment, entropy, KL), weighted; empty in eval mode.
        latents: the k encoder outputs (B, d, h, w) that were compared with the codes, normalised if those are.
        code_vectors: the k code vectors (B, d, h, w) whose gradient reaches the codebooks; empty where none do.
    """

    codes: Tensor | None
    quantized: Tensor
    subspaces: tuple[Tensor, ...] = ()
    losses: dict[str, Tensor] = field(default_factory=dict)
    latents: tuple[Tensor, ...] = ()
    code_vectors: tuple[Tensor, ...] = ()

    def rows(self, kept: Tensor) -> Encoding:
        """The encoding of the images a mask (B,) keeps; without the losses, which are those of all."""
        return Encoding(
            codes=None if self.codes is None else self.codes[kept],
            quantized=self.quantized[kept],
            subspaces=tuple(part[kept] for part in self.subspaces),
            latents=tuple(latent[kept] for latent in self.latents),
            code_vectors=tuple(vector[kept] for vector in self.code_vectors),
        )
