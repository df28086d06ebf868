"""Context manager that disables autocast and TF32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Compute float32 in float32: no autocast and no TF32.

    Rounding of the inputs would select other codes and change metrics; TF32, cuDNN's default, keeps 10 bits.
    """
    if device.type == "meta":  # where FLOPs are counted, and which has no autocast
        yield
        return
    matmul = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(matmul)


def autocasts(device: torch.device) -> bool:
    """True in a region of autocast for the device; the meta device has none."""
    return device.type != "meta" and torch.is_autocast_enabled(device.type)


def compute_type(weight: Tensor) -> torch.dtype:
    """Type in which a linear layer of this weight computes: autocast's in its region, else that of the weight."""
    return torch.get_autocast_dtype(weight.device.type) if autocasts(weight.device) else weight.dtype
