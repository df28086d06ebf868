"""Gathering of rows from all ranks."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torchmetrics.utilities.distributed import gather_all_tensors

from polytoken.distributed import several_ranks


def gather_rows(parts: list[Tensor], device: torch.device) -> Tensor:
    """Rows of all ranks, those of rank 0 first; a collective that every rank must call.

    torchmetrics gathers any numbers of rows, but a rank without any must know the shape and dtype of the others' rows,
    which are exchanged here first.

    Args:
        parts: tensors (n, …) on ``device`` that differ in n only; a rank may have none.
        device: device of the result.
    """
    rows = torch.cat(parts) if parts else torch.empty(0, device=device)
    if not several_ranks():
        return rows
    kinds: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(kinds, (rows.shape[1:], rows.dtype) if len(rows) else None)
    known = next((kind for kind in kinds if kind is not None), None)
    if known is None:
        return rows
    return torch.cat(
        gather_all_tensors(rows if len(rows) else torch.empty(0, *known[0], dtype=known[1], device=device))
    )
