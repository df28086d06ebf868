"""Cache of keys and values for generation."""

from __future__ import annotations

import copy
from typing import Self

import torch
from torch import Tensor

from polytoken.precision import compute_type


class KVCache:
    """Keys and values of all blocks, allocated once for a whole generation.

    Args:
        depth: blocks.
        batch: rows, all passes under guidance.
        num_heads: attention heads.
        capacity: positions.
        head_dim: width of one attention head.
        like: a weight whose device the cache has, and the type in which its layer computes.
    """

    def __init__(self, depth: int, batch: int, num_heads: int, capacity: int, head_dim: int, like: Tensor) -> None:
        dtype, shape = compute_type(like), (batch, num_heads, capacity, head_dim)
        # zeros: attention over the full capacity multiplies what has not been written by a weight of zero
        self.keys, self.values = (
            [torch.zeros(shape, dtype=dtype, device=like.device) for _ in range(depth)] for _ in range(2)
        )

    @property
    def nbytes(self) -> int:
        """Size of keys and values in bytes."""
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values))

    def rows(self, count: int) -> Self:
        """Return the cache of the first ``count`` rows, in the same memory."""
        part = copy.copy(self)
        part.keys, part.values = ([tensor[:count] for tensor in each] for each in (self.keys, self.values))
        return part

    def tensors(self) -> list[Tensor]:
        """Return all tensors that a step reads."""
        return [*self.keys, *self.values]

    def update(self, block: int, positions: slice | Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write a block's keys and values (B, heads, n, head_dim), and return those that attention reads.

        With a slice, they are the positions written so far, whose number eager code knows. With a tensor of indices
        (n,) int64 every shape is fixed: they are the full capacity, so one compiled graph serves all positions.
        """
        stored = self.keys[block], self.values[block]
        if isinstance(positions, slice):
            for target, new in zip(stored, (keys, values), strict=True):
                target[:, :, positions] = new
            end = positions.stop  # FSDP2 gathers weights in another type than the cache was made for
            return stored[0][:, :, :end].type_as(keys), stored[1][:, :, :end].type_as(values)
        for target, new in zip(stored, (keys, values), strict=True):
            target.index_copy_(2, positions, new.type_as(target))
        return stored
