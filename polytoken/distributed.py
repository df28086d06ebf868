"""What one rank knows of the others."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def mean_over_ranks(tensor: Tensor) -> Tensor:
    """The mean of a tensor over all ranks, without gradient; every rank must call it. Alone, the tensor itself."""
    tensor = tensor.detach()
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return tensor
    total = tensor.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()
