"""Lookup-free quantization: one bit a channel (LFQ of MAGVIT-v2, arXiv 2310.05737; BSQ, arXiv 2406.07548)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from polytoken.errors import UserError
from polytoken.precision import full_precision
from polytoken.quantizers.base import Quantizer
from polytoken.quantizers.digits import codes_to_digits, digits_to_codes, sub_code_sizes
from polytoken.ranges import above, at_least, within
from polytoken.specs import Encoding


class LookupFreeQuantizer(Quantizer):
    """Sign of each channel: LFQ, or with ``sphere`` BSQ. There is no codebook to learn and none to search.

    The code vectors are {−s, s}^d, with s = 1 for LFQ and s = 1/√d on the unit sphere. Gradients pass the sign
    unchanged, ẑ = z + sg(z_q − z). The losses are a commitment β‖sg z_q − z‖², a mean over all entries, and an entropy
    λ(E[H(p)] − γ H(E[p])) of p = softmax(−‖z − c‖² / τ) over all 2^d codes c. The bits of p are independent, so E[H(p)]
    is a sum over bits. E[p] is not a product: H(E[p]) needs a table of 2^g codes for each g bits, and treats the tables
    as independent. A loss of weight 0 is not computed.

    Args:
        bits: d.
        num_sub_codes: k sub-codes of d/k consecutive bits; channel 1 is the least significant, as in MAGVIT-v2.
        sphere: normalise z to the unit sphere before the sign.
        commitment_weight: β; BSQ bounds the error of the sign and needs none.
        entropy_weight: λ.
        diversity: γ.
        temperature: τ.
        entropy_bits: g. None is d/k, exact for each sub-code; 1 is the approximation of BSQ.
        max_matrix_elements: the most entries of the (positions × 2^g) tables held at once.

    Raises:
        UserError: if k does not divide d, a sub-code is too large for a softmax, or g does not divide d/k.
    """

    levels: Tensor

    def __init__(
        self,
        bits: int = 18,
        num_sub_codes: int = 2,
        sphere: bool = False,
        commitment_weight: float = 0.25,
        entropy_weight: float = 0.1,
        diversity: float = 1.0,
        temperature: float = 0.01,
        entropy_bits: int | None = None,
        max_matrix_elements: int = 2**24,
    ) -> None:
        within(1, 1024, self, bits=bits)
        at_least(1, self, num_sub_codes=num_sub_codes, entropy_bits=entropy_bits)
        at_least(1, self, max_matrix_elements=max_matrix_elements)
        at_least(0, self, commitment_weight=commitment_weight, entropy_weight=entropy_weight, diversity=diversity)
        above(0, self, temperature=temperature)
        sizes = sub_code_sizes([2] * bits, num_sub_codes)
        width = bits // num_sub_codes
        if width % (entropy_bits or width):
            raise UserError(f"entropy_bits={entropy_bits} does not divide the {width} bits of a sub-code")
        super().__init__((bits,), (width,) * num_sub_codes, sizes)
        self.sphere = sphere
        self.magnitude = bits**-0.5 if sphere else 1.0
        self.commitment_weight = commitment_weight
        self.entropy_weight = entropy_weight
        self.diversity = diversity
        self.temperature = temperature
        self.entropy_bits = entropy_bits or width
        self.max_matrix_elements = max_matrix_elements
        # (k, d/k); set by the configuration, so checkpoints leave it out
        self.register_buffer("levels", torch.full((num_sub_codes, width), 2), persistent=False)

    def forward(self, features: Tensor) -> Encoding:
        """Features (B, d, h, w) to codes (B, k, h·w) and their vectors (B, d, h, w) float32."""
        with full_precision(features.device):
            latents = features.float()
            if self.sphere:
                latents = functional.normalize(latents, dim=1)
            digits = (latents > 0).long()
            vectors = self._vectors(digits)
            losses = self._losses(latents, vectors) if self.training else {}
            quantized = latents + (vectors - latents).detach()
        rows = digits.flatten(2).transpose(1, 2).unflatten(2, self.levels.shape)  # (B, h·w, k, d/k)
        return Encoding(
            codes=digits_to_codes(rows, self.levels, "little_endian").transpose(1, 2),
            quantized=quantized,
            subspaces=quantized.split(self.subspace_channels, dim=1),
            losses=losses,
            latents=latents.split(self.subspace_channels, dim=1),
        )

    def embed_codes(self, codes: Tensor, grid: tuple[int, int]) -> Tensor:
        """Codes (B, k, h·w) to their vectors (B, d, h, w) float32."""
        self.check_codes(codes, grid)
        digits = codes_to_digits(codes.transpose(1, 2), self.levels, "little_endian")
        return self._vectors(digits.flatten(2).transpose(1, 2).unflatten(2, grid))

    def snap(self, quantized: Tensor) -> Tensor:
        """Vectors (B, d, h, w) to the nearest code vectors, float32."""
        return self._vectors((quantized > 0).long())

    def _vectors(self, digits: Tensor) -> Tensor:
        return (2 * digits - 1) * self.magnitude

    def _losses(self, latents: Tensor, vectors: Tensor) -> dict[str, Tensor]:
        losses = {}  # a weight of 0 switches a term off
        if self.commitment_weight > 0:
            losses["commitment"] = self.commitment_weight * functional.mse_loss(latents, vectors)
        if self.entropy_weight > 0:
            rows = latents.permute(0, 2, 3, 1).flatten(0, 2)
            logits = 4 * self.magnitude / self.temperature * rows  # of p(bit = 1): ‖z + s‖² − ‖z − s‖² = 4sz
            codes = mean_code_probabilities(logits, self.entropy_bits, self.max_matrix_elements)
            gap = bit_entropies(logits).sum(-1).mean() - self.diversity * entropies(codes).sum()
            losses["entropy"] = self.entropy_weight * gap
        return losses


def bit_entropies(logits: Tensor) -> Tensor:
    """H(σ(a)) in nats of each entry, exact for large |a|; the shape of ``logits``."""
    size = logits.abs()
    return functional.softplus(-size) + size * torch.sigmoid(-size)


def entropies(probabilities: Tensor) -> Tensor:
    """Entropy in nats of each row of (…, K); (…)."""
    smallest = torch.finfo(probabilities.dtype).tiny
    return -(probabilities * probabilities.clamp_min(smallest).log()).sum(-1)


def mean_code_probabilities(logits: Tensor, group: int, max_matrix_elements: int) -> Tensor:
    """E[p] over rows, for each group of consecutive independent bits.

    Chunks of rows are recomputed in backward, so the (n × d/g × 2^g) probabilities are never held whole.

    Args:
        logits: (n, d), of each bit being 1.
        group: g, bits whose joint distribution is kept.
        max_matrix_elements: the most probabilities of one chunk.

    Returns:
        (d/g, 2^g); the first bit of a group is the least significant of its codes.
    """
    entries_a_row = logits.shape[1] // group * 2**group
    total = logits.new_zeros(logits.shape[1] // group, 2**group)
    for chunk in logits.unflatten(1, (-1, group)).split(max(1, max_matrix_elements // entries_a_row)):
        total = total + checkpoint(_sum_of_joint, chunk, use_reentrant=False, preserve_rng_state=False)
    return total / len(logits)


def _sum_of_joint(logits: Tensor) -> Tensor:
    joint = torch.ones_like(logits[..., :1])
    for bit in logits.split(1, dim=-1):
        joint = torch.cat([joint * torch.sigmoid(-bit), joint * torch.sigmoid(bit)], dim=-1)
    return joint.sum(0)
