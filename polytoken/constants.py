"""Constants on a device, copied there once."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=256)
def constant(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return a tensor (n,) of the values, which callers must not write to.

    The first call copies the values from the host, for which the host waits; later calls return the same tensor.
    """
    with torch.inference_mode(mode=False):  # autograd may use it later
        return torch.tensor(values, device=device, dtype=dtype)
