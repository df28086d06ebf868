"""Block-causal transformer over the scales of an image's codes (VAR, arXiv 2404.02905)."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from polytoken.cache import KVCache
from polytoken.errors import UserError
from polytoken.modulated_transformer import modulate
from polytoken.positions import Grids
from polytoken.ranges import at_least, below_one
from polytoken.transformer import apply_blocks

NORM_EPSILON = 1e-6
INITIAL_ATTENTION_SCALE = math.log(4.0)
LARGEST_ATTENTION_SCALE = math.log(100.0)


@dataclass(frozen=True)
class NextScaleTrunkConfig:
    """Sizes and regularisation of a next-scale transformer's trunk.

    Args:
        depth: blocks.
        dim: width of the residual stream; None is 64 · depth, as VAR.
        num_heads: attention heads; None is one for 64 channels.
        ffn_multiple: the feed-forward's hidden width is 4 · dim rounded up to a multiple of it.
        stochastic_depth: rate at which the last block drops a branch of a sample; the first drops none, the rate grows
            evenly. None is 0.1 · depth / 24, as VAR.
        gate_scale: factor of the initial weights of the gates; VAR takes 1e-3 up to depth 20, then less.
        class_dropout: share of labels replaced by the null class in training, which is what guidance needs.
        shared_modulation: compute gates, scales and shifts once for all blocks, each of which adds an offset of its own
            to them, as VAR at 512 px.
        checkpointing: keep only block inputs for backward and compute the blocks twice (:mod:`polytoken.parallelize`).
        compile: ``torch.compile`` every block separately, for training (:mod:`polytoken.parallelize`).
    """

    depth: int
    dim: int | None = None
    num_heads: int | None = None
    ffn_multiple: int = 1
    stochastic_depth: float | None = None
    gate_scale: float = 1e-3
    class_dropout: float = 0.1
    shared_modulation: bool = False
    checkpointing: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        at_least(1, "trunk", depth=self.depth, ffn_multiple=self.ffn_multiple, dim=self.dim, num_heads=self.num_heads)
        if self.width % self.heads:
            raise UserError(
                f"trunk: {self.width} channels do not divide into {self.heads} attention heads: change dim or num_heads"
            )
        below_one("trunk", class_dropout=self.class_dropout, stochastic_depth=self.stochastic_depth)

    @property
    def width(self) -> int:
        """Channels of the residual stream."""
        return 64 * self.depth if self.dim is None else self.dim

    @property
    def heads(self) -> int:
        """Attention heads."""
        return max(1, self.width // 64) if self.num_heads is None else self.num_heads

    @property
    def largest_drop(self) -> float:
        """Rate of stochastic depth of the last block."""
        return 0.1 * self.depth / 24 if self.stochastic_depth is None else self.stochastic_depth


class CachedScale(NamedTuple):
    """A scale whose keys and values are added to a cache.

    Attributes:
        cache: of the scales before.
        first: position of the scale's first code among those of all scales.
    """

    cache: KVCache
    first: int


class CosineAttention(nn.Module):
    """Self-attention by the angle between queries and keys, with a learned scale a head."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.wqkv = nn.Linear(dim, 3 * dim, bias=False)
        self.query_bias = nn.Parameter(torch.zeros(dim))  # keys have none: it would change nothing
        self.value_bias = nn.Parameter(torch.zeros(dim))
        self.log_scale = nn.Parameter(torch.full((num_heads,), INITIAL_ATTENTION_SCALE))  # one dimension: not decayed
        self.wo = nn.Linear(dim, dim)

    def forward(
        self, features: Tensor, mask: Tensor | None, cached: CachedScale | None = None, block: int = 0
    ) -> Tensor:
        """Map (B, n, dim) to the same shape; ``mask`` (n, n) bool marks the keys that a query reads, None all."""
        bias = torch.cat([self.query_bias, torch.zeros_like(self.query_bias), self.value_bias])
        fused = functional.linear(features, self.wqkv.weight, bias).unflatten(-1, (3, self.num_heads, -1))
        queries, keys, values = fused.permute(2, 0, 3, 1, 4).unbind(0)
        scale = self.log_scale.clamp_max(LARGEST_ATTENTION_SCALE).exp().view(-1, 1, 1)
        queries = (functional.normalize(queries.float(), dim=-1) * scale).type_as(values)
        keys = functional.normalize(keys.float(), dim=-1).type_as(values)
        if cached is not None:
            positions = slice(cached.first, cached.first + keys.shape[2])
            keys, values = cached.cache.update(block, positions, keys, values)
        attended = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=1.0)
        return self.wo(attended.transpose(1, 2).flatten(2))


class NextScaleBlock(nn.Module):
    """Attention, then feed-forward; the class gates, scales and shifts both (adaLN)."""

    rates: Tensor | None

    def __init__(self, config: NextScaleTrunkConfig, drop: float) -> None:
        super().__init__()
        dim = config.width
        self.checkpointing = self.compiled = False  # polytoken.parallelize sets them
        self.drop = drop
        # read as a tensor, since compiled blocks that differ in a Python number share no graph
        self.register_buffer("rates", torch.tensor([drop, 1 - drop]) if drop else None, persistent=False)
        self.attention = CosineAttention(dim, config.heads)
        hidden = -(-4 * dim // config.ffn_multiple) * config.ffn_multiple
        self.ffn_in = nn.Linear(dim, hidden)
        self.ffn_out = nn.Linear(hidden, dim)
        self.shares_modulation = config.shared_modulation
        if self.shares_modulation:
            self.modulation_offset = nn.Parameter(torch.randn(6 * dim) / math.sqrt(dim))  # one dimension: not decayed
        else:
            self.modulation = nn.Linear(dim, 6 * dim)

    def forward(self, features: Tensor, condition: Tensor, mask: Tensor | None) -> Tensor:
        """Map all scales (B, N, dim) to the same shape.

        The condition is (B, dim), or the shared modulation (B, 6 · dim).
        """
        if self.checkpointing and torch.is_grad_enabled():
            # inside the compiled and sharded block, so that backward recomputes with both
            return cast(Tensor, checkpoint(self._compute, features, condition, mask, use_reentrant=False))
        return self._compute(features, condition, mask)

    def step(self, features: Tensor, condition: Tensor, cached: CachedScale, block: int) -> Tensor:
        """Map one scale (B, n, dim) to the same shape; the cache holds the scales before."""
        return self._compute(features, condition, None, cached, block)

    def _compute(
        self,
        features: Tensor,
        condition: Tensor,
        mask: Tensor | None,
        cached: CachedScale | None = None,
        block: int = 0,
    ) -> Tensor:
        modulation = self._modulation(condition).unsqueeze(1).chunk(6, dim=2)
        gate, ffn_gate, scale, ffn_scale, shift, ffn_shift = modulation
        attended = self.attention(modulate(_norm(features), shift, scale), mask, cached, block)
        features = features + self._dropped(gate * attended)
        hidden = functional.gelu(self.ffn_in(modulate(_norm(features), ffn_shift, ffn_scale)), approximate="tanh")
        return features + self._dropped(ffn_gate * self.ffn_out(hidden))

    def _modulation(self, condition: Tensor) -> Tensor:
        if self.shares_modulation:
            return condition + self.modulation_offset
        return self.modulation(functional.silu(condition))

    def _dropped(self, branch: Tensor) -> Tensor:
        """Stochastic depth (arXiv 1603.09382): the branch of some samples is 0, those of the others are enlarged."""
        if not self.training or self.rates is None:
            return branch
        drop, keep = self.rates
        kept = torch.rand(len(branch), 1, 1, device=branch.device) >= drop
        return branch * (kept / keep).type_as(branch)


class NextScaleTrunk(nn.Module):
    """Blocks over the positions of all scales; each position sees its own scale and those before.

    Args:
        config: sizes and regularisation.
        grids: of the scales.
    """

    def __init__(self, config: NextScaleTrunkConfig, grids: Grids) -> None:
        super().__init__()
        self.grids = grids
        last = max(1, config.depth - 1)
        drops = (config.largest_drop * index / last for index in range(config.depth))
        self.blocks = nn.ModuleList(NextScaleBlock(config, drop) for drop in drops)
        self.modulation = nn.Linear(config.width, 2 * config.width)
        self.shares_modulation = config.shared_modulation
        if self.shares_modulation:
            self.shared_modulation = nn.Linear(config.width, 6 * config.width)

    def forward(
        self, features: Tensor, condition: Tensor, taps: Collection[int] = ()
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Map all scales (B, N, dim) to the same shape, given a condition (B, dim).

        Also return the outputs of the blocks whose numbers, counted from 1, are in ``taps``.
        """
        mask = scale_mask(self.grids, features.device)
        features, tapped = apply_blocks(self.blocks, features, taps, self._of_blocks(condition), mask)
        return self._output(features, condition), tapped

    def step(self, features: Tensor, condition: Tensor, cached: CachedScale) -> Tensor:
        """Map a scale (B, n, dim) to the same shape, and add it to the cache."""
        of_blocks = self._of_blocks(condition)
        for index, block in enumerate(self.blocks):
            features = cast(NextScaleBlock, block).step(features, of_blocks, cached, index)
        return self._output(features, condition)

    def new_cache(self, rows: int) -> KVCache:
        """Return an empty cache for all scales of B' rows."""
        attention = cast(NextScaleBlock, self.blocks[0]).attention
        capacity = sum(height * width for height, width in self.grids)
        head_dim = attention.wo.in_features // attention.num_heads
        return KVCache(len(self.blocks), rows, attention.num_heads, capacity, head_dim, attention.wo.weight)

    def _of_blocks(self, condition: Tensor) -> Tensor:
        """Condition that the blocks read."""
        if self.shares_modulation:
            return self.shared_modulation(functional.silu(condition))
        return condition

    def _output(self, features: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.modulation(functional.silu(condition)).unsqueeze(1).chunk(2, dim=2)
        return modulate(_norm(features), shift, scale)


@lru_cache(maxsize=64)
def scale_mask(grids: Grids, device: torch.device) -> Tensor:
    """Mask (N, N) bool: query i reads key j unless j belongs to a finer scale."""
    with torch.inference_mode(False):  # a mask first used in inference also serves training
        scales = [torch.full((height * width,), index) for index, (height, width) in enumerate(grids)]
        scale = torch.cat(scales).to(device)
        return scale.unsqueeze(1) >= scale.unsqueeze(0)


def initialise_next_scale(modules: Sequence[nn.Module], config: NextScaleTrunkConfig) -> None:
    """Initialise as VAR's released code does.

    Linear layers and embeddings are N(0, 1 / (3 · dim)), biases 0. Output projections of branches are divided by
    √(2 · depth), modulation is halved, and its gates are multiplied by ``gate_scale`` instead; where it is shared, this
    holds for the offsets, which are N(0, 1 / dim) before.
    """
    deviation = math.sqrt(1 / (3 * config.width))
    for network in modules:
        for module in network.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=deviation)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
    with torch.no_grad():
        for network in modules:
            for module in network.modules():
                if isinstance(module, NextScaleBlock):
                    for projection in (module.attention.wo, module.ffn_out):
                        projection.weight.div_(math.sqrt(2 * config.depth))
                    modulation = module.modulation_offset if config.shared_modulation else module.modulation.weight
                    modulation[: 2 * config.width].mul_(config.gate_scale)
                    modulation[2 * config.width :].mul_(0.5)
                elif isinstance(module, NextScaleTrunk):
                    module.modulation.weight.mul_(0.5)


def _norm(features: Tensor) -> Tensor:
    return functional.layer_norm(features.float(), features.shape[-1:], eps=NORM_EPSILON).type_as(features)
