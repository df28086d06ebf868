"""What every bottleneck promises, and the tail that leads from base features to its few channels."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from polytoken.blocks import NormSwish
from polytoken.specs import Encoding


class Quantizer(nn.Module, ABC):
    """Base features (B, in_channels, h, w) to an :class:`Encoding`.

    Args:
        in_channels: width of the features it reads.
        subspace_channels: widths of the k ``Encoding.subspaces``; their sum is ``out_channels``, the C of
            ``Encoding.quantized``.
        codebook_sizes: K_1 … K_k; empty for a continuous bottleneck.
    """

    def __init__(self, in_channels: int, subspace_channels: tuple[int, ...], codebook_sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.subspace_channels = subspace_channels
        self.out_channels = sum(subspace_channels)
        self.codebook_sizes = codebook_sizes

    @abstractmethod
    def forward(self, features: Tensor) -> Encoding:
        """Quantize."""

    @abstractmethod
    def embed_codes(self, codes: Tensor, grid: tuple[int, int]) -> Tensor:
        """Codes (B, k, h·w) to the quantized features (B, C, h, w) that :meth:`forward` returned with them."""


class LatentHead(nn.Module):
    """The encoder's tail: norm, swish, 3 × 3 convolution to ``latent_channels``, 1 × 1 ``quant_conv`` to the code."""

    def __init__(self, in_channels: int, latent_channels: int, code_dim: int) -> None:
        super().__init__()
        self.norm_out = NormSwish(in_channels)
        self.conv_out = nn.Conv2d(in_channels, latent_channels, 3, padding=1)
        self.quant_conv = nn.Conv2d(latent_channels, code_dim, 1)

    def forward(self, features: Tensor) -> Tensor:
        """(B, in_channels, h, w) to (B, code_dim, h, w)."""
        return self.quant_conv(self.conv_out(self.norm_out(features)))
