"""Llama-style transformer on a grid: RMSNorm, SwiGLU, 2-D rotary positions, KV cache (LlamaGen, arXiv 2406.06525)."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import NamedTuple, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from polytoken.cache import KVCache
from polytoken.errors import UserError
from polytoken.positions import ClassPosition, Grids, Rotation, rotary_table
from polytoken.ranges import at_least, below_one, one_of

NORM_EPSILON = 1e-5
QK_NORM_EPSILON = 1e-6
INITIAL_DEVIATION = 0.02


def check_head_width(dim: int, num_heads: int, owner: str) -> None:
    """Raise UserError unless an attention head divides into rotated pairs for two axes."""
    if dim % num_heads or dim // num_heads % 4:
        raise UserError(
            f"{owner}: {dim} channels over {num_heads} attention heads leave {dim / num_heads:g} channels a head, "
            f"which must be a multiple of 4 (pairs for rows, pairs for columns): change dim or num_heads"
        )


def apply_blocks(
    blocks: Iterable[nn.Module], features: Tensor, taps: Collection[int], *arguments: object
) -> tuple[Tensor, dict[int, Tensor]]:
    """Apply blocks one after the other to features (B, N, dim).

    Compiled blocks run as such where gradients are computed. Elsewhere they run as they are: batches of evaluation and
    sampling have many sizes, and each would be compiled.

    Args:
        blocks: called with the features and ``arguments``.
        features: input of the first block.
        taps: numbers of the blocks whose outputs are also returned, counted from 1.
        arguments: of every block.

    Returns:
        The output of the last block, and the tapped outputs by number.
    """
    tapped = {}
    blocks = [*blocks]
    evaluates = not torch.is_grad_enabled() and any(block.compiled for block in blocks)
    with torch.compiler.set_stance("force_eager") if evaluates else nullcontext():  # which imports the compiler
        for number, block in enumerate(blocks, start=1):
            features = block(features, *arguments)
            if number in taps:
                tapped[number] = features
    return features, tapped


@dataclass(frozen=True)
class TrunkConfig:
    """Sizes and regularisation of a trunk (LlamaGen, arXiv 2406.06525).

    Args:
        dim: width of the residual stream.
        depth: blocks.
        num_heads: attention heads; ``dim / num_heads`` must be a multiple of 4.
        ffn_multiple: the SwiGLU's hidden width is int(8/3 · dim) rounded up to a multiple of it.
        resid_dropout: after the attention's output projection.
        ffn_dropout: after the feed-forward network.
        token_dropout: on the embedded sequence, the class included.
        class_dropout: share of labels replaced by the null class in training, which is what guidance needs.
        class_position: rotation of the class's position. ``zero`` is released code's: its queries and keys vanish, so
            that it attends to itself and weighs e⁰ for all others; ``identity`` leaves them as they are.
        checkpointing: keep only block inputs for backward and compute the blocks twice (:mod:`polytoken.parallelize`).
        compile: ``torch.compile`` every block separately, for training (:mod:`polytoken.parallelize`).
    """

    dim: int
    depth: int
    num_heads: int
    ffn_multiple: int = 256
    resid_dropout: float = 0.1
    ffn_dropout: float = 0.1
    token_dropout: float = 0.1
    class_dropout: float = 0.1
    class_position: ClassPosition = "zero"
    checkpointing: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        at_least(1, "trunk", dim=self.dim, depth=self.depth, num_heads=self.num_heads, ffn_multiple=self.ffn_multiple)
        check_head_width(self.dim, self.num_heads, "trunk")
        below_one(
            "trunk",
            resid_dropout=self.resid_dropout,
            ffn_dropout=self.ffn_dropout,
            token_dropout=self.token_dropout,
            class_dropout=self.class_dropout,
        )
        one_of("trunk", get_args(ClassPosition), class_position=self.class_position)

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.dim // self.num_heads


SIZES: dict[str, TrunkConfig] = {
    "B": TrunkConfig(768, 12, 12),
    "L": TrunkConfig(1024, 24, 16),
    "XL": TrunkConfig(1280, 36, 20),
    "XXL": TrunkConfig(1536, 48, 24),
    "3B": TrunkConfig(3200, 24, 32),
    "FAR-Base": TrunkConfig(1024, 24, 16),
    "FAR-Large": TrunkConfig(1280, 36, 20),
}
"""Published trunks of LlamaGen and FQGAN at 256 to 384 px; FAR-Base uses a 3-block head, FAR-Large a 4-block one."""


def initialise(module: nn.Module) -> None:
    """Initialise one linear or embedding layer as LlamaGen does: N(0, 0.02²), biases at zero."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=INITIAL_DEVIATION)
        bias = getattr(module, "bias", None)
        if bias is not None:
            nn.init.zeros_(cast(Tensor, bias))


class RMSNorm(nn.Module):
    """Division by the root mean square, in float32 for any input type, then a learned scale."""

    def __init__(self, dim: int, epsilon: float = NORM_EPSILON) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, features: Tensor) -> Tensor:
        """(…, dim) to the same shape and type."""
        normed = functional.rms_norm(features.float(), (features.shape[-1],), eps=self.epsilon)
        return normed.type_as(features) * self.weight


class RotaryCache(KVCache):
    """A cache whose positions are rows of a rotary table.

    Args:
        depth, batch, num_heads, capacity, head_dim, like: see :class:`polytoken.cache.KVCache`.
        rotary: table of the positions.
    """

    def __init__(
        self, depth: int, batch: int, num_heads: int, capacity: int, head_dim: int, like: Tensor, rotary: Tensor
    ) -> None:
        super().__init__(depth, batch, num_heads, capacity, head_dim, like)
        self.rotary = rotary

    def tensors(self) -> list[Tensor]:
        return [*super().tensors(), self.rotary]

    def at(self, position: int | Tensor, count: int) -> CachedPositions:
        """Return the part of the cache that a step over ``count`` positions, starting at ``position``, uses."""
        capacity, device = self.keys[0].shape[2], self.rotary.device
        if isinstance(position, int):
            end = position + count
            mask = None if count == 1 else torch.ones(count, end, dtype=torch.bool, device=device).tril(position)
            return CachedPositions(self, slice(position, end), Rotation(self.rotary[position:end]), mask)
        indices = position + torch.arange(count, device=device)
        mask = torch.arange(capacity, device=device) <= indices.unsqueeze(1)
        return CachedPositions(self, indices, Rotation(self.rotary.index_select(0, indices)), mask)


class CachedPositions(NamedTuple):
    """Consecutive positions in a cache.

    Attributes:
        cache: written to.
        indices: the positions, a slice or (n,) int64.
        rotation: of the positions.
        mask: (n, keys read) bool; None reads all.
    """

    cache: KVCache
    indices: slice | Tensor
    rotation: Rotation
    mask: Tensor | None


class Attention(nn.Module):
    """Self-attention with rotary positions.

    Args:
        dim: channels.
        num_heads: attention heads.
        dropout: of the output.
        causal: a position sees no later ones.
        bias: both layers have one.
        qk_norm: normalise the queries and keys of each head before they are turned.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        dropout: float = 0.0,
        causal: bool = True,
        bias: bool = False,
        qk_norm: bool = False,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.causal = causal
        self.wqkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.wo = nn.Linear(dim, dim, bias=bias)
        head_dim = dim // num_heads
        self.query_norm = RMSNorm(head_dim, QK_NORM_EPSILON) if qk_norm else nn.Identity()
        self.key_norm = RMSNorm(head_dim, QK_NORM_EPSILON) if qk_norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, features: Tensor, rotation: Rotation, cached: CachedPositions | None = None, block: int = 0
    ) -> Tensor:
        """Map (B, n, dim) to the same shape; with a cache, also attend to the positions before."""
        fused = self.wqkv(features).unflatten(-1, (3, self.num_heads, -1))  # (B, n, 3, heads, head_dim)
        queries, keys, values = fused.permute(2, 0, 3, 1, 4).unbind(0)
        queries, keys = rotation(self.query_norm(queries)), rotation(self.key_norm(keys))
        mask = None
        if cached is not None:
            keys, values = cached.cache.update(block, cached.indices, keys, values)
            mask = cached.mask
        is_causal = self.causal and cached is None  # and nothing of the shapes, which would be symbols if compiled
        attended = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, is_causal=is_causal)
        return self.dropout(self.wo(attended.transpose(1, 2).flatten(2)))


class FeedForward(nn.Module):
    """SwiGLU of hidden width int(8/3 · dim), rounded up to a multiple."""

    def __init__(self, dim: int, multiple: int, dropout: float = 0.0, bias: bool = False) -> None:
        super().__init__()
        hidden = -(-int(8 * dim / 3) // multiple) * multiple
        self.w1 = nn.Linear(dim, hidden, bias=bias)
        self.w3 = nn.Linear(dim, hidden, bias=bias)
        self.w2 = nn.Linear(hidden, dim, bias=bias)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor) -> Tensor:
        """(…, dim) to the same shape."""
        return self.dropout(self.w2(functional.silu(self.w1(features)) * self.w3(features)))


class Block(nn.Module):
    """Attention, then feed-forward, each behind its norm and around a skip."""

    def __init__(self, config: TrunkConfig) -> None:
        super().__init__()
        self.checkpointing = self.compiled = False  # polytoken.parallelize sets them
        self.attention_norm = RMSNorm(config.dim)
        self.attention = Attention(config.dim, config.num_heads, config.resid_dropout)
        self.ffn_norm = RMSNorm(config.dim)
        self.feed_forward = FeedForward(config.dim, config.ffn_multiple, config.ffn_dropout)

    def forward(self, features: Tensor, rotation: Rotation) -> Tensor:
        """Map a whole sequence (B, n, dim) to the same shape."""
        if self.checkpointing and torch.is_grad_enabled():
            # inside the compiled and sharded block, so that backward recomputes with both
            return cast(Tensor, checkpoint(self._compute, features, rotation, use_reentrant=False))
        return self._compute(features, rotation)

    def step(self, features: Tensor, cached: CachedPositions, block: int) -> Tensor:
        """Map (B, n, dim) at cached positions to the same shape, as block number ``block`` of the cache.

        A block's own compilation does not cover it; :meth:`AutoregressiveGenerator.decode` is compiled as a whole.
        """
        return self._compute(features, cached.rotation, cached, block)

    def _compute(
        self, features: Tensor, rotation: Rotation, cached: CachedPositions | None = None, block: int = 0
    ) -> Tensor:
        features = features + self.attention(self.attention_norm(features), rotation, cached, block)
        return features + self.feed_forward(self.ffn_norm(features))


class BlockStack(nn.Module):
    """Blocks one after the other over a sequence whose positions are the first rows of a rotary table.

    Args:
        config: sizes of the blocks.
        grids: scales behind the rotary table.
        capacity: the longest sequence.
    """

    def __init__(self, config: TrunkConfig, grids: Grids, capacity: int) -> None:
        super().__init__()
        self.config = config
        self.grids = grids
        self.capacity = capacity
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))

    def forward(self, features: Tensor, taps: Collection[int] = ()) -> tuple[Tensor, dict[int, Tensor]]:
        """Map (B, n ≤ capacity, dim) to the same shape; position t sees positions up to t.

        Also return the outputs of the blocks whose numbers, counted from 1, are in ``taps``.
        """
        rotation = Rotation(self._rotary(features.device)[: features.shape[1]])
        return apply_blocks(self.blocks, features, taps, rotation)

    @torch.no_grad()
    def step(self, features: Tensor, position: int | Tensor, cache: RotaryCache) -> Tensor:
        """Map (B, n, dim) at ``position`` and after to the same shape; the cache holds what came before.

        Args:
            features: inputs.
            position: of the first; a tensor () gives every position the same shapes, see :meth:`KVCache.update`.
            cache: of :meth:`new_cache`, for as many rows.
        """
        cached = cache.at(position, features.shape[1])
        for index, block in enumerate(self.blocks):
            features = cast(Block, block).step(features, cached, index)
        return features

    def new_cache(self, batch: int) -> RotaryCache:
        """Return an empty cache for a batch of the longest sequences."""
        config = self.config
        like = cast(Block, self.blocks[0]).attention.wqkv.weight
        rotary = self._rotary(like.device)
        return RotaryCache(config.depth, batch, config.num_heads, self.capacity, config.head_dim, like, rotary)

    def _rotary(self, device: torch.device) -> Tensor:
        return rotary_table(self.grids, self.config.head_dim, self.config.class_position, device)


class Trunk(BlockStack):
    """The generator's body: token dropout, then blocks; the final norm belongs to the head that reads it.

    Args:
        config: sizes and regularisation.
        grids: scales of the codes; the class takes position 0 and the last code is never read.
    """

    def __init__(self, config: TrunkConfig, grids: Grids) -> None:
        super().__init__(config, grids, capacity=sum(height * width for height, width in grids))
        self.token_dropout = nn.Dropout(config.token_dropout)

    def forward(self, features: Tensor, taps: Collection[int] = ()) -> tuple[Tensor, dict[int, Tensor]]:
        """Embedded class and codes (B, N, dim) to the features (B, N, dim) that the head reads, and tapped outputs."""
        return super().forward(self.token_dropout(features), taps)
