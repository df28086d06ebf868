"""Factorized quantization: k adapters, k sub-codebooks, concatenation (FQGAN, arXiv 2411.16681; SSQ section 3.1)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from polytoken.errors import UserError
from polytoken.quantizers.adapters import ConvolutionalAdapter, TransformerAdapter
from polytoken.quantizers.base import LatentHead, Quantizer
from polytoken.quantizers.vector import VectorQuantizer
from polytoken.specs import Encoding


class FactorizedQuantizer(Quantizer):
    """k subspaces side by side, each with its own adapter and codebook (FQGAN eqs. 4–6, SSQ eqs. 4–6).

    Dual, triple and quad are ``num_subspaces`` 2, 3 and 4; 1 without adapter is LlamaGen's single codebook.

    Args:
        in_channels: width of the base features.
        num_subspaces: k. Order: visual, then mid-level, then high-level.
        codebook_size: K of each codebook.
        code_dim: d of each codebook.
        adapter: what leads into a subspace: the released 6-layer transformer, light convolutions, or nothing.
        adapter_depth: transformer or residual blocks an adapter.
        grid_size: side of the grid a transformer adapter learns positions on; other grids resample them.
        latent_channels: channels between the adapter and its 1 × 1 ``quant_conv``.
        commitment_weight: β of each codebook.
        codebook_weight: of each codebook's own loss; 1 as released.
        entropy_weight: weight of each codebook's entropy term.
        entropy_temperature: its τ.
        max_matrix_elements: the most entries of a codebook's (positions × K) matrix ever held at once.
        entropy_gather: take the entropy term's mean use of codes over all ranks, not over each one's own batch.

    Losses of the k codebooks are summed, not averaged, as released.
    """

    def __init__(
        self,
        in_channels: int = 512,
        num_subspaces: int = 2,
        codebook_size: int = 16384,
        code_dim: int = 8,
        adapter: Literal["transformer", "convolutional", "none"] = "transformer",
        adapter_depth: int = 6,
        grid_size: int = 16,
        latent_channels: int = 256,
        commitment_weight: float = 0.25,
        entropy_weight: float = 0.0,
        entropy_temperature: float = 0.01,
        max_matrix_elements: int = 2**24,
        codebook_weight: float = 1.0,
        entropy_gather: bool = False,
    ) -> None:
        if num_subspaces < 1:
            raise UserError(f"num_subspaces must be at least 1, got {num_subspaces}")
        super().__init__(in_channels, (code_dim,) * num_subspaces, (codebook_size,) * num_subspaces)

        def build_adapter() -> nn.Module:
            if adapter == "transformer":
                return TransformerAdapter(in_channels, grid_size, adapter_depth)
            if adapter == "convolutional":
                return ConvolutionalAdapter(in_channels, adapter_depth)
            return nn.Identity()

        self.adapters = nn.ModuleList(build_adapter() for _ in range(num_subspaces))
        self.heads = nn.ModuleList(LatentHead(in_channels, latent_channels, code_dim) for _ in range(num_subspaces))
        self.codebooks = nn.ModuleList(
            VectorQuantizer(
                codebook_size,
                code_dim,
                commitment_weight,
                entropy_weight,
                entropy_temperature,
                max_matrix_elements=max_matrix_elements,
                codebook_weight=codebook_weight,
                entropy_gather=entropy_gather,
            )
            for _ in range(num_subspaces)
        )

    def forward(self, features: Tensor) -> Encoding:
        """Base features (B, in_channels, h, w) to codes (B, k, h·w) and their concatenated vectors (B, k·d, h, w)."""
        results = [
            codebook(head(adapter(features)))
            for adapter, head, codebook in zip(self.adapters, self.heads, self.codebooks, strict=True)
        ]
        losses: dict[str, Tensor] = {}
        for result in results:
            for name, value in result.losses.items():
                losses[name] = losses[name] + value if name in losses else value
        return Encoding(
            codes=torch.stack([result.codes for result in results], dim=1),
            quantized=torch.cat([result.quantized for result in results], dim=1),
            subspaces=tuple(result.quantized for result in results),
            losses=losses,
            latents=tuple(result.latents for result in results),
            code_vectors=tuple(result.code_vectors for result in results),
        )

    def embed_codes(self, codes: Tensor, grid: tuple[int, int]) -> Tensor:
        """Codes (B, k, h·w) to (B, k·d, h, w)."""
        if codes.shape[1] != len(self.codebooks):
            raise UserError(
                f"codes carry {codes.shape[1]} sub-codes, this quantizer has {len(self.codebooks)} codebooks"
            )
        parts = [
            codebook.embed_codes(sub_codes, grid)  # type: ignore[operator]
            for codebook, sub_codes in zip(self.codebooks, codes.unbind(1), strict=True)
        ]
        return torch.cat(parts, dim=1)
