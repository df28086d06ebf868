"""Heads that predict a teacher's features from one subspace, in training only (FQGAN section 3.2.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from polytoken.blocks import resample_positions, transformer_blocks


class ClassTokenPredictor(nn.Module):
    """Predicts the teacher's class token from a subspace: two linear layers, then a transformer with a class token.

    Sizes and order of the layers follow the released FQGAN.

    Args:
        in_channels: d of the subspace.
        width: D of the teacher and of this head.
        grid: (h, w) of the learned positions; they are resampled to other grids.
        depth: transformer blocks; 3 in FQGAN.
        num_heads: attention heads; 8 in FQGAN.
    """

    def __init__(self, in_channels: int, width: int, grid: tuple[int, int], depth: int = 3, num_heads: int = 8) -> None:
        super().__init__()
        self.grid = grid
        self.projection = nn.Sequential(nn.Linear(in_channels, width), nn.ReLU(), nn.Linear(width, width))
        self.class_token = nn.Parameter(nn.init.normal_(torch.empty(width), std=width**-0.5))
        self.positional_embedding = nn.Parameter(
            nn.init.normal_(torch.empty(1 + grid[0] * grid[1], width), std=width**-0.5)
        )
        self.ln_pre = nn.LayerNorm(width)
        self.blocks = transformer_blocks(width, depth, num_heads)
        self.ln_post = nn.LayerNorm(width)

    def forward(self, subspace: Tensor) -> Tensor:
        """Straight-through codes (B, d, h, w) to a prediction (B, D)."""
        tokens = self.projection(subspace.flatten(2).transpose(1, 2))
        lead = (self.class_token + self.positional_embedding[0]).expand(tokens.shape[0], 1, -1)
        positions = resample_positions(self.positional_embedding[1:], self.grid, (subspace.shape[2], subspace.shape[3]))
        tokens = torch.cat([lead, tokens + positions], dim=1)
        return self.ln_post(self.blocks(self.ln_pre(tokens)))[:, 0]


class PatchPredictor(nn.Sequential):
    """Predicts the teacher's patch at each position of a subspace: an MLP with two hidden layers.

    Args:
        in_channels: d of the subspace.
        width: D of the teacher and of the hidden layers.
    """

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__(
            nn.Linear(in_channels, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width)
        )

    def forward(self, subspace: Tensor) -> Tensor:
        """Straight-through codes (B, d, h, w) to predictions (B, h, w, D)."""
        return super().forward(subspace.permute(0, 2, 3, 1))
