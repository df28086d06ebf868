"""Feature adapters F_i: base features into one subspace (FQGAN eq. 4, SSQ section 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from polytoken.blocks import ResidualBlock, resample_positions, transformer_blocks


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
    """Residual blocks of the encoder's own kind: light, and free of any grid."""

    def __init__(self, channels: int, depth: int = 1) -> None:
        super().__init__(*(ResidualBlock(channels, channels) for _ in range(depth)))
