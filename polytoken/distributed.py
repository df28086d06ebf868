"""Distributed reductions."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from polytoken.errors import UserError


def several_ranks() -> bool:
    """Return True if this process is one of several ranks."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def mean_over_ranks(tensor: Tensor) -> Tensor:
    """Mean of a tensor over all ranks, without gradient; every rank must call it. Alone, the tensor itself."""
    tensor = tensor.detach()
    if not several_ranks():
        return tensor
    total = tensor.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def sum_over_ranks(tensor: Tensor, group: Any = None) -> list[Tensor]:
    """Sum of a tensor over the ranks of a group, as the only entry of a list; every rank must call it.

    As ``dist_sync_fn`` of a torchmetrics Metric whose states are sums, it needs the memory of one state. The default
    gathers those of all ranks and adds them up then: 5 GB for the covariance of Inception's features on 80 ranks.
    """
    total = tensor.detach().clone()
    dist.all_reduce(total, group=group)
    return [total]


def gather_over_ranks(rows: Tensor) -> tuple[Tensor, int]:
    """Rows (B, …) of all ranks in rank order, and the index of this rank's first row; no gradient.

    Every rank must call it. The check of sizes reads one number per rank from the device.

    Raises:
        UserError: the ranks hold different numbers of rows.
    """
    rows = rows.detach()
    if not several_ranks():
        return rows, 0
    sizes = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, torch.tensor([len(rows)], device=rows.device))
    counts = torch.cat(sizes).tolist()
    if len(set(counts)) > 1:
        raise UserError(
            f"gather needs equal batches on all ranks, got {counts}: drop the last batch, or set gather to false"
        )
    every = [torch.empty_like(rows) for _ in counts]
    dist.all_gather(every, rows.contiguous())
    return torch.cat(every), dist.get_rank() * len(rows)


def gather_with_gradient(rows: Tensor) -> Tensor:
    """Rows (B, …) of all ranks in rank order; the gradient is summed over ranks. Alone, the rows themselves.

    Every rank must call it with an equal B, as the sampler of training images guarantees.
    """
    return _Gathered.apply(rows) if several_ranks() else rows


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, rows: Tensor) -> Tensor:
        rows = rows.contiguous()
        every = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(every, rows)
        return torch.cat(every)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]
