"""Fixed embeddings of places and times: rotary and absolute positions on a grid, cosines and sines of a time."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

ClassPosition = Literal["zero", "identity"]
Grids = tuple[tuple[int, int], ...]
"""(h, w) of each scale, coarse first."""

BASE = 10000.0


@lru_cache(maxsize=64)
def rotary_table(grids: Grids, head_dim: int, class_position: ClassPosition | None, device: torch.device) -> Tensor:
    """Return cosines and sines (1 + Σ h·w, head_dim / 2, 2) in float32 of 2-D rotary positions, row by row.

    The first half of a head's pairs turns with the grid's row, the second half with its column. Rows and columns of
    every scale count in units of the finest grid, at the centres of what they cover. Row 0 of the table is the class's
    position: all zeros, or no rotation; it is left out where ``class_position`` is None. No module owns the table: it
    is neither cast with the weights nor saved, so that weights load for other grids.
    """
    with torch.inference_mode(False):  # a table first used in inference also serves training
        frequencies = _frequencies(head_dim // 4, device)
        scales = []
        for grid in grids:
            rows, columns = (
                (torch.arange(size, dtype=torch.float32, device=device) + 0.5) * (finest / size) - 0.5
                for size, finest in zip(grid, grids[-1], strict=True)
            )
            row_angles = torch.outer(rows, frequencies).unsqueeze(1).expand(-1, len(columns), -1)
            column_angles = torch.outer(columns, frequencies).unsqueeze(0).expand(len(rows), -1, -1)
            scales.append(torch.cat([row_angles, column_angles], dim=2).flatten(0, 1))
        angles = torch.cat(scales)
        table = torch.stack([angles.cos(), angles.sin()], dim=2)
        if class_position is None:
            return table
        first = torch.zeros_like(table[:1])
        if class_position == "identity":
            first[..., 0] = 1.0
        return torch.cat([first, table])


class Rotation:
    """Rotation of queries and keys at n positions.

    Not a tensor, since FSDP casts the tensors that a block is called with.

    Args:
        table: n rows of a :func:`rotary_table`.
    """

    def __init__(self, table: Tensor) -> None:
        self.cosine, self.sine = table.unbind(-1)

    def __call__(self, features: Tensor) -> Tensor:
        """Turn (B, heads, n, head_dim) in float32."""
        even, odd = features.float().unflatten(-1, (-1, 2)).unbind(-1)
        turned = torch.stack([even * self.cosine - odd * self.sine, odd * self.cosine + even * self.sine], dim=-1)
        return turned.flatten(-2).type_as(features)


@lru_cache(maxsize=64)
def position_table(grid: tuple[int, int], dim: int, device: torch.device) -> Tensor:
    """Return fixed positions (h·w, dim) in float32: sine and cosine of the column, then of the row.

    No module owns the table: it is neither cast with the weights nor saved.
    """
    with torch.inference_mode(False):  # a table first used in inference also serves training
        frequencies = _frequencies(dim // 4, device)
        rows, columns = (torch.arange(size, dtype=torch.float32, device=device) for size in grid)
        places = columns.repeat(grid[0]), rows.repeat_interleave(grid[1])
        angles = [torch.outer(place, frequencies) for place in places]
        return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1)


def time_features(times: Tensor, channels: int) -> Tensor:
    """Return cosines, then sines (B, channels) in float32 of times (B,), at frequencies 10000^(-2j / channels)."""
    angles = times.float().unsqueeze(1) * _frequencies(channels // 2, times.device)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def _frequencies(count: int, device: torch.device) -> Tensor:
    """Return 10000^(-j / count) for j = 0, 1, …, count − 1."""
    return BASE ** -(torch.arange(count, dtype=torch.float32, device=device) / count)
