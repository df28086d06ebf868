"""Building blocks of the VQGAN / LlamaGen encoder and decoder (arXiv 2012.09841, 2406.06525)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from polytoken.errors import UserError


class NormSwish(nn.GroupNorm):
    """GroupNorm, then swish; (B, C, h, w) to the same shape.

    32 groups as in VQGAN, but never fewer than 4 channels a group: with one channel each, as 32 groups would leave a
    narrow network, the norm erases the brightness of the image.

    With ``recompute``, backward recomputes the norm's output instead of keeping it: of the three maps that norm, swish
    and convolution would hold, two remain, for a second pass of norm and swish. Compiled code does not read
    ``recompute``: the compiler recomputes what fuses with backward.
    """

    recompute = True

    def __init__(self, channels: int) -> None:
        super().__init__(_groups(channels), channels, eps=1e-6)

    def forward(self, features: Tensor) -> Tensor:
        """swish(norm(x))."""
        if self.recompute and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return checkpoint(self._norm_swish, features, use_reentrant=False, preserve_rng_state=False)
        return self._norm_swish(features)

    def _norm_swish(self, features: Tensor) -> Tensor:
        normed = super().forward(features)
        return functional.silu(normed, inplace=not normed.requires_grad)


class ResidualBlock(nn.Module):
    """Norm, swish, 3 × 3 convolution, twice, around a skip; a 1 × 1 shortcut only where the width changes."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = NormSwish(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = NormSwish(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        """(B, in_channels, h, w) to (B, out_channels, h, w)."""
        residual = self.conv2(self.norm2(self.conv1(self.norm1(features))))
        residual += self.nin_shortcut(features)  # in place, which saves a map: no backward reads a convolution's output
        return residual


class SpatialAttention(nn.Module):
    """Single-head self-attention over all positions of a map, with 1 × 1 projections and a skip."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(_groups(channels), channels, eps=1e-6)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, h, w) to the same shape."""
        normed = self.norm(features)
        query, key, value = (
            project(normed).flatten(2).transpose(1, 2).unsqueeze(1) for project in (self.q, self.k, self.v)
        )
        attended = functional.scaled_dot_product_attention(query, key, value)  # (B, 1, h·w, C)
        attended = attended.squeeze(1).transpose(1, 2).unflatten(2, features.shape[2:])
        residual = self.proj_out(attended)
        residual += features  # in place, as in ResidualBlock
        return residual


class Downsample(nn.Module):
    """Halve height and width: pad right and bottom by one, then a 3 × 3 convolution of stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, h, w) to (B, C, h/2, w/2)."""
        return self.conv(functional.pad(features, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double height and width: nearest neighbour, then a 3 × 3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, h, w) to (B, C, 2h, 2w)."""
        return self.conv(functional.interpolate(features, scale_factor=2.0, mode="nearest"))


def exact_gelu(features: Tensor) -> Tensor:
    """GELU without approximation, for nn.TransformerEncoderLayer.

    Not "gelu": with it the layer takes torch's fused path in eval mode without gradients, which on CUDA computes the
    tanh approximation, while training computes the exact function. No path is fused for an activation of one's own.
    """
    return functional.gelu(features)


def transformer_blocks(width: int, depth: int, num_heads: int) -> nn.Sequential:
    """Pre-norm transformer blocks with exact GELU and an MLP four times as wide, each with its own weights.

    Not nn.TransformerEncoder, which copies one layer and so its random weights.
    """
    return nn.Sequential(
        *(
            nn.TransformerEncoderLayer(
                width, num_heads, 4 * width, dropout=0.0, activation=exact_gelu, batch_first=True, norm_first=True
            )
            for _ in range(depth)
        )
    )


def resample_positions(learned: Tensor, grid: tuple[int, int], wanted: tuple[int, int]) -> Tensor:
    """Bicubic resampling of positions (h·w, C) learned on ``grid`` to the grid ``wanted``; (h'·w', C)."""
    if wanted == grid:
        return learned
    resampled = functional.interpolate(learned.T.unflatten(1, grid).unsqueeze(0), wanted, mode="bicubic")
    return resampled.squeeze(0).flatten(1).T


def _groups(channels: int) -> int:
    groups = min(32, channels // 4)
    if groups == 0 or channels % groups:
        raise UserError(f"a width of {channels} channels does not divide into {groups or 1} groups of 4 or more")
    return groups
