"""Rows of all ranks together, however many each of them has."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def gather_rows(parts: list[Tensor], device: torch.device) -> Tensor:
    """All rows of tensors (n, …), those of rank 0 first; on every rank, and every rank must call it.

    Args:
        parts: tensors on ``device``, alike but for n; a rank may have none.
        device: where the result goes.
    """
    rows = torch.cat(parts) if parts else torch.empty(0, device=device)
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return rows
    shapes: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(shapes, (rows.shape, rows.dtype) if parts else None)
    counts = [shape[0][0] if shape else 0 for shape in shapes]
    known = [shape for shape in shapes if shape]
    if not sum(counts):
        return rows
    # collectives want equal shapes
    padded = torch.zeros((max(counts), *known[0][0][1:]), dtype=known[0][1], device=device)
    if len(rows):
        padded[: len(rows)] = rows
    gathered = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(gathered, padded)
    return torch.cat([part[:count] for part, count in zip(gathered, counts, strict=True)])
