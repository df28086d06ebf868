"""Precisions that a caller has set, and a record of that in which convolutions are computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn


@contextmanager
def caller_in_bfloat16() -> Iterator[None]:
    """Settings of a caller whose default dtype is bfloat16, and who is in inference mode."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.inference_mode():
            yield
        assert torch.get_default_dtype() == torch.bfloat16, "it was restored"
    finally:
        torch.set_default_dtype(torch.float32)


def tf32_of_convolutions(monkeypatch: pytest.MonkeyPatch) -> set[bool]:
    """Return a set that gets, with each convolution from now on, whether a GPU might compute it in TF32."""
    seen: set[bool] = set()
    forward = nn.Conv2d.forward

    def recorded(self: nn.Conv2d, given: Tensor) -> Tensor:
        seen.add(torch.backends.cudnn.allow_tf32)
        return forward(self, given)

    monkeypatch.setattr(nn.Conv2d, "forward", recorded)
    return seen
