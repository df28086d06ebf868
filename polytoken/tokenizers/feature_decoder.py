"""Feature decoder D_feat: tokens to the features of a foundation model (Ideal, arXiv 2606.11096, eq. 7)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from polytoken.blocks import exact_gelu
from polytoken.ranges import at_least, below_one
from polytoken.tokenizers.fusion import FFN_RATIO


@dataclass(frozen=True)
class FeatureDecoderConfig:
    """Sizes of a feature decoder; the default is Ideal's (Table 8).

    Args:
        depth: transformer blocks.
        num_heads: attention heads.
        num_registers: register tokens, besides the class token.
        dropout: of attention weights, branches and hidden units.
    """

    depth: int = 6
    num_heads: int = 8
    num_registers: int = 4
    dropout: float = 0.1

    def __post_init__(self) -> None:
        at_least(1, "feature_decoder", depth=self.depth, num_heads=self.num_heads)
        at_least(0, "feature_decoder", num_registers=self.num_registers)
        below_one("feature_decoder", dropout=self.dropout)


class FeatureDecoder(nn.Module):
    """g = D_feat(z̃): a transformer with full attention over tokens, class token and registers (Ideal eq. 7).

    The order is class token, tokens, registers; class token and registers are dropped at the end. Tokens and the class
    token have learned positions, registers start at zero and have none. A norm stands before the first block and none
    after the last, as released.

    Args:
        width: D of the tokens.
        num_positions: tokens of an image.
        config: sizes.
    """

    def __init__(self, width: int, num_positions: int, config: FeatureDecoderConfig) -> None:
        super().__init__()
        scale = width**-0.5
        self.class_token = nn.Parameter(scale * torch.randn(1, 1, width))
        self.positions = nn.Parameter(scale * torch.randn(1, 1 + num_positions, width))
        self.registers = nn.Parameter(torch.zeros(1, config.num_registers, width))
        self.norm = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width,
                config.num_heads,
                FFN_RATIO * width,
                config.dropout,
                activation=exact_gelu,
                batch_first=True,
                norm_first=True,
            )
            for _ in range(config.depth)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, N, D) to features (B, N, D)."""
        count = tokens.shape[1]
        placed = torch.cat([self.class_token.expand(tokens.shape[0], -1, -1), tokens], dim=1) + self.positions
        features = self.norm(torch.cat([placed, self.registers.expand(tokens.shape[0], -1, -1)], dim=1))
        for block in self.blocks:
            features = block(features)
        return features[:, 1 : 1 + count]
