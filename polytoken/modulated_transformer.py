"""Transformer on a grid whose blocks a condition modulates (DiT; LightningDiT, arXiv 2501.01423)."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from polytoken.positions import Rotation, position_table, rotary_table, time_features
from polytoken.precision import full_precision
from polytoken.ranges import at_least, below_one
from polytoken.transformer import (
    INITIAL_DEVIATION,
    Attention,
    FeedForward,
    RMSNorm,
    apply_blocks,
    check_head_width,
)

NORM_EPSILON = 1e-6
TIME_CHANNELS = 256


@dataclass(frozen=True)
class DiffusionTrunkConfig:
    """Sizes and regularisation of a diffusion transformer's trunk.

    Args:
        dim: width of the residual stream.
        depth: blocks.
        num_heads: attention heads; ``dim / num_heads`` must be a multiple of 4.
        patch_size: side p of the square of latents that one position holds.
        ffn_multiple: the SwiGLU's hidden width is int(8/3 · dim) rounded up to a multiple of it.
        qk_norm: normalise queries and keys, as iFSQ's released recipe does.
        class_dropout: share of labels replaced by the null class in training, which is what guidance needs.
        checkpointing: keep only block inputs for backward and compute the blocks twice (:mod:`polytoken.parallelize`).
        compile: ``torch.compile`` every block separately, for training (:mod:`polytoken.parallelize`).
    """

    dim: int
    depth: int
    num_heads: int
    patch_size: int = 1
    ffn_multiple: int = 1
    qk_norm: bool = True
    class_dropout: float = 0.1
    checkpointing: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        at_least(1, "trunk", dim=self.dim, depth=self.depth, num_heads=self.num_heads)
        at_least(1, "trunk", patch_size=self.patch_size, ffn_multiple=self.ffn_multiple)
        check_head_width(self.dim, self.num_heads, "trunk")
        below_one("trunk", class_dropout=self.class_dropout)


DIFFUSION_SIZES: dict[str, DiffusionTrunkConfig] = {
    "S": DiffusionTrunkConfig(384, 12, 6),
    "B": DiffusionTrunkConfig(768, 12, 12),
    "L": DiffusionTrunkConfig(1024, 24, 16),
    "XL": DiffusionTrunkConfig(1152, 28, 16),
}
"""Published trunks of DiT and LightningDiT, at patch size 1; L/2 is L at patch size 2."""


class TimeEmbedding(nn.Module):
    """Cosines and sines of t in [0, 1] at 128 frequencies, then two layers.

    It computes in float32 under any precision: rounded to bfloat16, t would take 256 values between 0.25 and 1.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.first = nn.Linear(TIME_CHANNELS, dim)
        self.second = nn.Linear(dim, dim)

    def forward(self, times: Tensor) -> Tensor:
        """Map float32 times (B,) to (B, dim)."""
        with full_precision(times.device):
            hidden = functional.silu(_linear(self.first, time_features(times, TIME_CHANNELS)))
            return _linear(self.second, hidden)


class ModulatedBlock(nn.Module):
    """Attention, then feed-forward; a condition shifts, scales and gates both (adaLN-zero)."""

    def __init__(self, config: DiffusionTrunkConfig) -> None:
        super().__init__()
        dim = config.dim
        self.checkpointing = self.compiled = False  # polytoken.parallelize sets them
        self.attention_norm = RMSNorm(dim, NORM_EPSILON)
        self.attention = Attention(dim, config.num_heads, causal=False, bias=True, qk_norm=config.qk_norm)
        self.ffn_norm = RMSNorm(dim, NORM_EPSILON)
        self.feed_forward = FeedForward(dim, config.ffn_multiple, bias=True)
        self.modulation = nn.Linear(dim, 6 * dim)

    def forward(self, features: Tensor, condition: Tensor, rotation: Rotation) -> Tensor:
        """Map (B, N, dim) to the same shape, given a condition (B, dim)."""
        if self.checkpointing and torch.is_grad_enabled():
            # inside the compiled and sharded block, so that backward recomputes with both
            return cast(Tensor, checkpoint(self._compute, features, condition, rotation, use_reentrant=False))
        return self._compute(features, condition, rotation)

    def _compute(self, features: Tensor, condition: Tensor, rotation: Rotation) -> Tensor:
        modulation = self.modulation(functional.silu(condition)).unsqueeze(1).chunk(6, dim=2)
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = modulation
        features = features + gate * self.attention(modulate(self.attention_norm(features), shift, scale), rotation)
        return features + ffn_gate * self.feed_forward(modulate(self.ffn_norm(features), ffn_shift, ffn_scale))


class ModulatedTrunk(nn.Module):
    """Blocks over a grid, with fixed absolute positions and rotary ones.

    Args:
        config: sizes.
        grid: (h, w) of the positions.
    """

    def __init__(self, config: DiffusionTrunkConfig, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        self.head_dim = config.dim // config.num_heads
        self.blocks = nn.ModuleList(ModulatedBlock(config) for _ in range(config.depth))

    def forward(
        self, features: Tensor, condition: Tensor, taps: Collection[int] = ()
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Map (B, N, dim) to the same shape, given a condition (B, dim).

        Also return the outputs of the blocks whose numbers, counted from 1, are in ``taps``.
        """
        features = features + position_table(self.grid, features.shape[2], features.device)
        features = features.type_as(condition)  # the table is float32 under any weights
        rotation = Rotation(rotary_table((self.grid,), self.head_dim, None, features.device))
        return apply_blocks(self.blocks, features, taps, condition, rotation)


class ModulatedOutput(nn.Module):
    """Norm, modulation and output layer."""

    def __init__(self, dim: int, channels: int) -> None:
        super().__init__()
        self.norm = RMSNorm(dim, NORM_EPSILON)
        self.modulation = nn.Linear(dim, 2 * dim)
        self.output = nn.Linear(dim, channels)

    def forward(self, features: Tensor, condition: Tensor) -> Tensor:
        """Map (B, N, dim) to (B, N, channels), given a condition (B, dim)."""
        shift, scale = self.modulation(functional.silu(condition)).unsqueeze(1).chunk(2, dim=2)
        return self.output(modulate(self.norm(features), shift, scale))


def modulate(features: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Return x · (1 + scale) + shift."""
    return features * (1 + scale) + shift


def initialise_modulated(network: nn.Module) -> None:
    """Initialise as the released code does; an untrained network outputs exactly 0.

    Linear layers are Xavier-uniform, embeddings and the layers of time N(0, 0.02²), biases 0; modulation and output
    are 0. w1 and w3 of a feed-forward network have the deviation of the released code's one layer (2h, dim) for both.
    """
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=INITIAL_DEVIATION)
    for module in network.modules():
        if isinstance(module, TimeEmbedding):
            nn.init.normal_(module.first.weight, std=INITIAL_DEVIATION)
            nn.init.normal_(module.second.weight, std=INITIAL_DEVIATION)
        elif isinstance(module, FeedForward):
            hidden, dim = module.w1.weight.shape
            gain = math.sqrt((dim + hidden) / (dim + 2 * hidden))  # the fan-out of both layers together is 2h
            with torch.no_grad():
                module.w1.weight *= gain
                module.w3.weight *= gain
        elif isinstance(module, ModulatedBlock | ModulatedOutput):
            nn.init.zeros_(module.modulation.weight)
        if isinstance(module, ModulatedOutput):
            nn.init.zeros_(module.output.weight)


def _linear(layer: nn.Linear, features: Tensor) -> Tensor:
    return functional.linear(features, layer.weight.float(), layer.bias.float())  # FSDP2 may have cast the weights
