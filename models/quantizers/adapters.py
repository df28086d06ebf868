"""Feature adapters F_i: base features into one subspace (FQGAN eq. 4, SSQ section 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.blocks import ResidualBlock


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
        # Layers of their own rather than nn.TransformerEncoder, which copies one layer and so its random weights.
        self.blocks = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(
                    channels, num_heads, 4 * channels, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
                )
                for _ in range(depth)
            )
        )
        self.ln_post = nn.LayerNorm(channels)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, h, w) to the same shape; no skip around the whole adapter."""
        grid = features.shape[2:]
        tokens = features.flatten(2).transpose(1, 2) + self._positions(grid[0], grid[1])
        return self.ln_post(self.blocks(self.ln_pre(tokens))).transpose(1, 2).unflatten(2, grid)

    def _positions(self, height: int, width: int) -> Tensor:
        if (height, width) == (self.grid_size, self.grid_size):
            return self.positional_embedding
        learned = self.positional_embedding.T.unflatten(1, (self.grid_size, self.grid_size)).unsqueeze(0)
        resampled = functional.interpolate(learned, (height, width), mode="bicubic", align_corners=False)
        return resampled.squeeze(0).flatten(1).T


class ConvolutionalAdapter(nn.Sequential):
    """Residual blocks of the encoder's own kind: light, and free of any grid."""

    def __init__(self, channels: int, depth: int = 1) -> None:
        super().__init__(*(ResidualBlock(channels, channels) for _ in range(depth)))
