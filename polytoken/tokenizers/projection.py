"""Projection of base features into k subspaces: the adapters F_i (SSQ eq. 4, FQGAN eq. 4) and the encoder's tail."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from polytoken.blocks import NormSwish, ResidualBlock, resample_positions, transformer_blocks

Adapter = Literal["transformer", "convolutional", "none"]


class SubspaceProjection(nn.Module):
    """h_i = F_i(h_base), i = 1 … k, concatenated (SSQ eq. 4, FQGAN eq. 4).

    F_i is an adapter and then the tail of the VQGAN encoder, which leads to the few channels of a code.

    Args:
        in_channels: width of the base features.
        subspaces: widths of the k subspaces, as the quantizer's ``in_subspaces`` says.
        channels: width between the two convolutions of a tail.
        adapter: FQGAN's transformer, light residual blocks, or no adapter.
        adapter_depth: blocks of an adapter.
        grid_size: side of the grid on which a transformer adapter learns its positions.
        kernel_size: of each ``quant_conv``.
    """

    def __init__(
        self,
        in_channels: int,
        subspaces: Sequence[int],
        channels: int,
        adapter: Adapter = "none",
        adapter_depth: int = 6,
        grid_size: int = 16,
        kernel_size: int = 1,
    ) -> None:
        super().__init__()

        def build_adapter() -> nn.Module:
            if adapter == "transformer":
                return TransformerAdapter(in_channels, grid_size, adapter_depth)
            if adapter == "convolutional":
                return ConvolutionalAdapter(in_channels, adapter_depth)
            return nn.Identity()

        self.adapters = nn.ModuleList(build_adapter() for _ in subspaces)
        self.tails = nn.ModuleList(EncoderTail(in_channels, channels, width, kernel_size) for width in subspaces)

    def forward(self, features: Tensor) -> Tensor:
        """Base features (B, in_channels, h, w) to the subspaces side by side, (B, Σ widths, h, w)."""
        return torch.cat(
            [tail(adapter(features)) for adapter, tail in zip(self.adapters, self.tails, strict=True)], dim=1
        )


class EncoderTail(nn.Module):
    """End of the VQGAN encoder: norm, swish, 3 × 3 convolution, and the ``quant_conv`` to the code's width."""

    def __init__(self, in_channels: int, channels: int, code_dim: int, kernel_size: int = 1) -> None:
        super().__init__()
        self.norm_out = NormSwish(in_channels)
        self.conv_out = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.quant_conv = nn.Conv2d(channels, code_dim, kernel_size, padding=kernel_size // 2)

    def forward(self, features: Tensor) -> Tensor:
        """(B, in_channels, h, w) to (B, code_dim, h, w)."""
        return self.quant_conv(self.conv_out(self.norm_out(features)))


class TransformerAdapter(nn.Module):
    """Pre-norm transformer over the positions, with learned positions that resample to other grids.

    Args:
        channels: width of the features, kept.
        grid_size: side of the grid the positions are learned on.
        depth: blocks; 6 in FQGAN.
        num_heads: attention heads; 8 in FQGAN.
    """

    def __init__(self, channels: int, grid_size: int, depth: int = 6, num_heads: int = 8) -> None:
        super().__init__()
        self.grid_size = grid_size
        self.positional_embedding = nn.Parameter(
            nn.init.normal_(torch.empty(grid_size**2, channels), std=channels**-0.5)
        )
        self.ln_pre = nn.LayerNorm(channels)
        self.blocks = transformer_blocks(channels, depth, num_heads)
        self.ln_post = nn.LayerNorm(channels)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, h, w) to the same shape; no skip around the whole adapter."""
        grid = (features.shape[2], features.shape[3])
        learned = resample_positions(self.positional_embedding, (self.grid_size, self.grid_size), grid)
        tokens = features.flatten(2).transpose(1, 2) + learned
        return self.ln_post(self.blocks(self.ln_pre(tokens))).transpose(1, 2).unflatten(2, grid)


class ConvolutionalAdapter(nn.Sequential):
    """Residual blocks of the encoder's own kind: light, and independent of the grid."""

    def __init__(self, channels: int, depth: int = 1) -> None:
        super().__init__(*(ResidualBlock(channels, channels) for _ in range(depth)))
