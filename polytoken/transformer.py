"""Llama-style transformer on a grid: RMSNorm, SwiGLU, 2-D rotary positions, KV cache (LlamaGen, arXiv 2406.06525)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from polytoken.errors import UserError
from polytoken.linear import Linear

ClassPosition = Literal["zero", "identity"]

ROTARY_BASE = 10000.0
NORM_EPSILON = 1e-5


def check_head_width(dim: int, num_heads: int, owner: str) -> None:
    """Refuse attention heads that two axes of rotated pairs do not fit into."""
    if dim % num_heads or dim // num_heads % 4:
        raise UserError(
            f"{owner}: {dim} channels over {num_heads} attention heads leave {dim / num_heads:g} channels a head, "
            f"which must be a multiple of 4 (pairs for rows, pairs for columns): change dim or num_heads"
        )


@dataclass(frozen=True)
class TrunkConfig:
    """Sizes and regularisation of a trunk (facts B1, B2).

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
        checkpointing: keep only block inputs for backward and compute the blocks twice.
        compile: ``torch.compile`` every block by itself, for training.
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
        for name in ("dim", "depth", "num_heads", "ffn_multiple"):
            if getattr(self, name) < 1:
                raise UserError(f"trunk.{name} is {getattr(self, name)}: it must be at least 1")
        check_head_width(self.dim, self.num_heads, "trunk")
        for name in ("resid_dropout", "ffn_dropout", "token_dropout", "class_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"trunk.{name} is {getattr(self, name)}: a share to drop lies in [0, 1)")
        if self.class_position not in ("zero", "identity"):
            raise UserError(f"trunk.class_position is {self.class_position!r}: choose zero or identity")

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
"""Published trunks at 256 to 384 px (facts B1); FAR-Base wears a head of 3 blocks, FAR-Large one of 4."""


class RMSNorm(nn.Module):
    """Division by the root mean square, in float32 whatever comes in, then a learned scale."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, features: Tensor) -> Tensor:
        """(…, dim) to the same shape and type."""
        normed = functional.rms_norm(features.float(), (features.shape[-1],), eps=NORM_EPSILON)
        return normed.type_as(features) * self.weight


class RotaryTable(nn.Module):
    """Cosines and sines of 2-D rotary positions: row 0 for the class, then the grid row by row (facts B2, part E).

    The first half of a head's pairs turns with the grid's row, the second half with its column.

    Args:
        grid: (h, w).
        head_dim: width of one attention head.
        class_position: row 0: all zeros, or no rotation.
    """

    table: Tensor

    def __init__(self, grid: tuple[int, int], head_dim: int, class_position: ClassPosition) -> None:
        super().__init__()
        self.grid = grid
        self.head_dim = head_dim
        self.class_position = class_position
        # not in checkpoints: other grids must be able to load them
        self.register_buffer("table", self._compute(torch.get_default_device()), persistent=False)

    def _compute(self, device: torch.device) -> Tensor:
        pairs = self.head_dim // 4
        exponents = torch.arange(pairs, dtype=torch.float32, device=device) / pairs
        frequencies = ROTARY_BASE**-exponents
        rows, columns = (torch.arange(size, dtype=torch.float32, device=device) for size in self.grid)
        row_angles = torch.outer(rows, frequencies).unsqueeze(1).expand(-1, len(columns), -1)
        column_angles = torch.outer(columns, frequencies).unsqueeze(0).expand(len(rows), -1, -1)
        angles = torch.cat([row_angles, column_angles], dim=2).flatten(0, 1)
        table = torch.stack([angles.cos(), angles.sin()], dim=2)
        first = torch.zeros_like(table[:1])
        if self.class_position == "identity":
            first[..., 0] = 1.0
        return torch.cat([first, table])

    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]  # noqa: ANN001
        """Follow a module to another device, or out of meta, but stay float32 when it is cast to bfloat16."""
        super()._apply(fn, recurse)
        self.table = self._compute(self.table.device)
        return self

    def forward(self, features: Tensor, start: int) -> Tensor:
        """Turn (B, heads, n, head_dim), whose first entry is position ``start``, in float32."""
        table = self.table[start : start + features.shape[2]]
        even, odd = features.float().unflatten(-1, (-1, 2)).unbind(-1)
        cosine, sine = table.unbind(-1)
        turned = torch.stack([even * cosine - odd * sine, odd * cosine + even * sine], dim=-1)
        return turned.flatten(-2).type_as(features)


class KVCache:
    """Keys and values of all blocks, allocated once for a whole generation.

    Args:
        depth: blocks.
        batch: rows, both halves under guidance.
        num_heads: attention heads.
        capacity: positions.
        head_dim: width of one attention head.
        like: a tensor whose device and type the cache takes; under autocast its type is autocast's.
    """

    def __init__(self, depth: int, batch: int, num_heads: int, capacity: int, head_dim: int, like: Tensor) -> None:
        device = like.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else like.dtype
        shape = (depth, 2, batch, num_heads, capacity, head_dim)
        # not zeroed: attention reads what has been written only
        self.blocks = torch.empty(shape, dtype=dtype, device=like.device)

    def keep_rows(self, count: int) -> None:
        """Go on with the first ``count`` rows; a view, nothing is copied."""
        self.blocks = self.blocks[:, :, :count]

    def append(self, block: int, position: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write (B, heads, n, head_dim) at ``position`` and return all up to there, as views."""
        stored_keys, stored_values = self.blocks[block]
        end = position + keys.shape[2]
        stored_keys[:, :, position:end] = keys
        stored_values[:, :, position:end] = values
        return stored_keys[:, :, :end], stored_values[:, :, :end]


class Attention(nn.Module):
    """Causal self-attention, no biases."""

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.wqkv = Linear(dim, 3 * dim)
        self.wo = Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, features: Tensor, rotary: RotaryTable, start: int = 0, cache: KVCache | None = None, block: int = 0
    ) -> Tensor:
        """(B, n, dim) to the same shape; with a cache, also over the positions before ``start``."""
        count = features.shape[1]
        fused = self.wqkv(features).unflatten(-1, (3, self.num_heads, -1))  # (B, n, 3, heads, head_dim)
        queries, keys, values = fused.permute(2, 0, 3, 1, 4).unbind(0)
        queries, keys = rotary(queries, start), rotary(keys, start)
        mask = None
        if cache is not None:
            keys, values = cache.append(block, start, keys, values)
            if start > 0 and count > 1:
                mask = torch.ones(count, start + count, dtype=torch.bool, device=features.device).tril(start)
        attended = functional.scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, is_causal=start == 0 and count > 1
        )
        return self.dropout(self.wo(attended.transpose(1, 2).flatten(2)))


class FeedForward(nn.Module):
    """SwiGLU, no biases."""

    def __init__(self, dim: int, multiple: int, dropout: float) -> None:
        super().__init__()
        hidden = -(-int(8 * dim / 3) // multiple) * multiple
        self.w1 = Linear(dim, hidden)
        self.w3 = Linear(dim, hidden)
        self.w2 = Linear(hidden, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor) -> Tensor:
        """(…, dim) to the same shape."""
        return self.dropout(self.w2(functional.silu(self.w1(features)) * self.w3(features)))


class Block(nn.Module):
    """Attention, then feed-forward, each behind its norm and around a skip."""

    def __init__(self, config: TrunkConfig) -> None:
        super().__init__()
        self.checkpointing = config.checkpointing
        self.attention_norm = RMSNorm(config.dim)
        self.attention = Attention(config.dim, config.num_heads, config.resid_dropout)
        self.ffn_norm = RMSNorm(config.dim)
        self.feed_forward = FeedForward(config.dim, config.ffn_multiple, config.ffn_dropout)

    def forward(self, features: Tensor, rotary: RotaryTable) -> Tensor:
        """A whole sequence (B, n, dim) to the same shape."""
        if self.checkpointing and torch.is_grad_enabled():
            # inside of what is compiled and sharded, so that backward computes again what both have made of it
            return cast(Tensor, checkpoint(self._compute, features, rotary, use_reentrant=False))
        return self._compute(features, rotary)

    def step(self, features: Tensor, rotary: RotaryTable, start: int, cache: KVCache, block: int) -> Tensor:
        """(B, n, dim) from position ``start`` to the same shape; as block number ``block`` of a cache.

        Never compiled: that would be done again for every length.
        """
        return self._compute(features, rotary, start, cache, block)

    def _compute(
        self, features: Tensor, rotary: RotaryTable, start: int = 0, cache: KVCache | None = None, block: int = 0
    ) -> Tensor:
        features = features + self.attention(self.attention_norm(features), rotary, start, cache, block)
        return features + self.feed_forward(self.ffn_norm(features))


class BlockStack(nn.Module):
    """Blocks one after the other over a sequence whose positions are the first rows of a rotary table.

    Args:
        config: sizes of the blocks.
        grid: (h, w) behind the rotary table.
        capacity: the longest sequence.
    """

    def __init__(self, config: TrunkConfig, grid: tuple[int, int], capacity: int) -> None:
        super().__init__()
        self.config = config
        self.capacity = capacity
        self.rotary = RotaryTable(grid, config.head_dim, config.class_position)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        if config.compile:
            for block in self.blocks:
                block.compile()

    def forward(self, features: Tensor) -> Tensor:
        """(B, n ≤ capacity, dim) to the same shape; position t sees positions up to t."""
        for block in self.blocks:
            features = block(features, self.rotary)
        return features

    @torch.no_grad()
    def step(self, features: Tensor, position: int, cache: KVCache) -> Tensor:
        """(B, n, dim) at ``position`` and after, the cache holding what came before; same shape, no gradients."""
        for index, block in enumerate(self.blocks):
            features = cast(Block, block).step(features, self.rotary, position, cache, index)
        return features

    def new_cache(self, batch: int) -> KVCache:
        """Room for a batch of the longest sequences."""
        config = self.config
        like = cast(Block, self.blocks[0]).attention.wqkv.weight
        return KVCache(config.depth, batch, config.num_heads, self.capacity, config.head_dim, like)


class Trunk(BlockStack):
    """The generator's body: token dropout, then blocks; the final norm belongs to the head that reads it.

    Args:
        config: sizes and regularisation.
        grid: (h, w) of the codes; the class takes position 0 and the last code is never read.
    """

    def __init__(self, config: TrunkConfig, grid: tuple[int, int]) -> None:
        super().__init__(config, grid, capacity=grid[0] * grid[1])
        self.token_dropout = nn.Dropout(config.token_dropout)

    def forward(self, features: Tensor) -> Tensor:
        """Embedded class and codes (B, N, dim) to what predicts the codes (B, N, dim)."""
        return super().forward(self.token_dropout(features))
