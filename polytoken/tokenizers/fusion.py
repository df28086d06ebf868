"""Fusion of a deep and a shallow feature of a foundation model before quantization (Ideal, arXiv 2606.11096, eq. 6)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

FFN_RATIO = 2  # of Ideal's transformers, as released


class AttentionFusion(nn.Module):
    """z = AttnFuse(f_d, f_s): deep features look up shallow ones, and a feed-forward network follows (Ideal eq. 6).

    The paper gives one cross-attention and a feed-forward network. Pre-norm, residuals, heads and dropout are those of
    the released code: x = f_d + Attention(LN f_d, LN f_s), z = x + FFN(LN x). The norm of f_s is the paper's learnable
    one.

    Args:
        width: D of both features.
        num_heads: attention heads.
        dropout: of attention weights and of the feed-forward network; codes are then random in training.
    """

    def __init__(self, width: int, num_heads: int = 8, dropout: float = 0.1) -> None:
        super().__init__()
        self.query_norm = nn.LayerNorm(width)
        self.key_norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, num_heads, dropout, batch_first=True)
        self.ffn_norm = nn.LayerNorm(width)
        self.ffn = nn.Sequential(
            nn.Linear(width, FFN_RATIO * width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(FFN_RATIO * width, width),
            nn.Dropout(dropout),
        )

    def forward(self, deep: Tensor, shallow: Tensor) -> Tensor:
        """Features (B, n, D) and (B, n, D) to fused ones (B, n, D)."""
        keys = self.key_norm(shallow)
        attended, _ = self.attention(self.query_norm(deep), keys, keys, need_weights=False)
        features = deep + attended
        return features + self.ffn(self.ffn_norm(features))


class LinearFusion(nn.Module):
    """z = W [f_d; LN f_s]: the linear fusion of Ideal Table 7a, of which the paper gives no equation.

    Args:
        width: D of both features.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.key_norm = nn.LayerNorm(width)
        self.linear = nn.Linear(2 * width, width)

    def forward(self, deep: Tensor, shallow: Tensor) -> Tensor:
        """Features (B, n, D) and (B, n, D) to fused ones (B, n, D)."""
        return self.linear(torch.cat([deep, self.key_norm(shallow)], dim=-1))
