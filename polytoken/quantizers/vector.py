"""Vector quantization with l2-normalised codes (LlamaGen, arXiv 2406.06525; ViT-VQGAN, arXiv 2110.04627)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from polytoken.distributed import mean_over_ranks
from polytoken.precision import full_precision
from polytoken.quantizers.base import Quantizer
from polytoken.ranges import MOST_CODES, above, at_least, within
from polytoken.specs import Encoding


class VectorQuantizer(Quantizer):
    """Nearest code of one codebook (SSQ eq. 1, FQGAN eq. 1); alone it is LlamaGen's single-codebook quantizer.

    The losses are L_VQ of SSQ eq. 2 and FQGAN eq. 2 (Ideal eq. 4), as means over all B·h·w·d entries, as released:
    codebook ‖z_q − sg z‖², commitment β‖sg z_q − z‖², and entropy λ(E[H(p)] − H(E[p])) of p = softmax(−distance / τ).
    A loss of weight 0 is not computed. H(E[p]) is of the whole batch: as released of each rank's own, with
    ``entropy_gather`` of all ranks together.

    Args:
        codebook_size: K.
        code_dim: d.
        commitment_weight: β.
        codebook_weight: of the codebook loss; 1 as released.
        entropy_weight: λ.
        entropy_temperature: τ.
        normalize: compare on the unit sphere, and return unit codes.
        max_matrix_elements: the most entries of the (positions × K) matrix ever held at once.
        entropy_gather: take E[p] over all ranks, whose batches must be equally large; two ranks are then one batch.
    """

    def __init__(
        self,
        codebook_size: int = 16384,
        code_dim: int = 8,
        commitment_weight: float = 0.25,
        entropy_weight: float = 0.0,
        entropy_temperature: float = 0.01,
        normalize: bool = True,
        max_matrix_elements: int = 2**24,
        codebook_weight: float = 1.0,
        entropy_gather: bool = False,
    ) -> None:
        within(1, MOST_CODES, self, codebook_size=codebook_size)
        at_least(1, self, code_dim=code_dim, max_matrix_elements=max_matrix_elements)
        at_least(
            0, self, commitment_weight=commitment_weight, entropy_weight=entropy_weight, codebook_weight=codebook_weight
        )
        above(0, self, entropy_temperature=entropy_temperature)
        super().__init__((code_dim,), (code_dim,), (codebook_size,))
        self.entropy_gather = entropy_gather
        self.codebook_weight = codebook_weight
        self.commitment_weight = commitment_weight
        self.entropy_weight = entropy_weight
        self.entropy_temperature = entropy_temperature
        self.normalize = normalize
        self.max_matrix_elements = max_matrix_elements
        self.embedding = nn.Embedding(codebook_size, code_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        initialise_codebook(self.embedding, self.normalize)

    @property
    def codebook(self) -> Tensor:
        """(K, d) float32: the vectors that latents are compared with and codes decode to."""
        weight = self.embedding.weight.float()
        return functional.normalize(weight, dim=-1) if self.normalize else weight

    def forward(self, features: Tensor) -> Encoding:
        """Features (B, d, h, w) to codes (B, 1, h·w), their vectors (B, d, h, w) and the losses."""
        grid = features.shape[2:]
        with full_precision(features.device):
            flat = features.float().permute(0, 2, 3, 1).flatten(0, 2)
            if self.normalize:
                flat = functional.normalize(flat, dim=-1)
            codebook = self.codebook
            codes = nearest_codes(flat.detach(), codebook.detach(), self.max_matrix_elements)
            vectors = functional.embedding(codes, codebook)
            losses = self._losses(flat, vectors, codebook) if self.training else {}
            quantized = _to_map(flat + (vectors - flat).detach(), grid)  # straight-through: ẑ = z + sg(z_q − z)
            return Encoding(
                codes=codes.unflatten(0, (features.shape[0], 1, grid[0] * grid[1])),  # -1 is ambiguous without images
                quantized=quantized,
                subspaces=(quantized,),
                losses=losses,
                latents=(_to_map(flat, grid),),
                code_vectors=(_to_map(vectors, grid),),
            )

    def embed_codes(self, codes: Tensor, grid: tuple[int, int]) -> Tensor:
        """Codes (B, 1, h·w) to vectors (B, d, h, w) float32."""
        self.check_codes(codes, grid)
        return _to_map(functional.embedding(codes.flatten(), self.codebook), grid)

    def snap(self, quantized: Tensor) -> Tensor:
        """Vectors (B, d, h, w) to the nearest code vectors, float32."""
        with full_precision(quantized.device):
            rows, codebook = quantized.float().permute(0, 2, 3, 1).flatten(0, 2), self.codebook
            codes = nearest_codes(rows, codebook, self.max_matrix_elements)
            return _to_map(functional.embedding(codes, codebook), quantized.shape[2:])

    def _losses(self, flat: Tensor, vectors: Tensor, codebook: Tensor) -> dict[str, Tensor]:
        losses = {}  # a weight of 0 switches a term off
        if self.codebook_weight > 0:
            losses["codebook"] = self.codebook_weight * functional.mse_loss(vectors, flat.detach())
        if self.commitment_weight > 0:
            losses["commitment"] = self.commitment_weight * functional.mse_loss(flat, vectors.detach())
        if self.entropy_weight > 0:
            entropy = entropy_gap(
                flat, codebook, self.entropy_temperature, self.max_matrix_elements, self.entropy_gather
            )
            losses["entropy"] = self.entropy_weight * entropy
        return losses


def initialise_codebook(embedding: nn.Embedding, normalize: bool) -> None:
    """Draw the K codes uniformly from [−1/K, 1/K], and scale them to unit length where directions are compared."""
    bound = 1 / embedding.num_embeddings
    nn.init.uniform_(embedding.weight, -bound, bound)
    if normalize:
        with torch.no_grad():
            embedding.weight.copy_(functional.normalize(embedding.weight, dim=-1))


def nearest_codes(rows: Tensor, codebook: Tensor, max_matrix_elements: int) -> Tensor:
    """Index of the nearest codebook row for each of (n, d) rows, by squared distance.

    SSQ eq. 1, FQGAN eq. 1, Ideal eq. 2.

    Maximises z·e − ‖e‖²/2, which orders codes as the distance does but subtracts no large equal numbers. At most
    ``max_matrix_elements`` products are held at once.

    Returns:
        (n,) int64.
    """
    half_norms = codebook.square().sum(-1) / 2
    whole = torch.compiler.is_exporting()  # an exported program has one graph for all batches
    chunks = (rows,) if whole else rows.split(_rows_a_chunk(codebook, max_matrix_elements))
    return torch.cat([torch.addmm(half_norms, chunk, codebook.T, beta=-1).argmax(-1) for chunk in chunks])


def entropy_gap(
    rows: Tensor, codebook: Tensor, temperature: float, max_matrix_elements: int, gather: bool = False
) -> Tensor:
    """E[H(p)] − H(E[p]) of p = softmax(−‖z − e‖² / τ): low when each row is sure and all codes are used.

    With ``gather``, E[p] is that of all ranks' rows; averaged over ranks, value and gradients are those of one batch.

    Chunks are computed again in backward, so the (n × K) probabilities are never held whole. Logarithms of the mean
    carry the released 1e-5. Source: entropy term of MAGVIT-v2 (arXiv 2310.05737) as in LlamaGen's quantizer.
    """
    entropy_sum = rows.new_zeros(())
    probability_sum = rows.new_zeros(codebook.shape[0])
    for chunk in rows.split(_rows_a_chunk(codebook, max_matrix_elements)):
        chunk_entropy, chunk_probability = checkpoint(
            _chunk_entropy, chunk, codebook, temperature, use_reentrant=False, preserve_rng_state=False
        )
        entropy_sum = entropy_sum + chunk_entropy
        probability_sum = probability_sum + chunk_probability
    mean_probability = probability_sum / rows.shape[0]
    if gather:  # all ranks' value, and this one's gradient: DDP takes the mean of those
        mean_probability = mean_probability + (mean_over_ranks(mean_probability) - mean_probability.detach())
    return entropy_sum / rows.shape[0] + (mean_probability * (mean_probability + 1e-5).log()).sum()


def _chunk_entropy(rows: Tensor, codebook: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    with full_precision(rows.device):  # here too: backward computes it again, outside of the caller's context
        logits = (2 * rows @ codebook.T - codebook.square().sum(-1)) / temperature  # ‖z‖² is one constant per row
        log_probability = logits.log_softmax(-1)
        probability = logits.softmax(-1)  # exp of the logarithms is up to nine times slower on CPUs: denormals
        return -(probability * log_probability).sum(), probability.sum(0)


def _rows_a_chunk(codebook: Tensor, max_matrix_elements: int) -> int:
    return max(1, max_matrix_elements // codebook.shape[0])


def _to_map(rows: Tensor, grid: tuple[int, int] | torch.Size) -> Tensor:
    height, width = grid
    return rows.unflatten(0, (-1, height, width)).permute(0, 3, 1, 2)
