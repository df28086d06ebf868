"""Record of the precision in which convolutions are computed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn


def tf32_of_convolutions(monkeypatch: pytest.MonkeyPatch) -> set[bool]:
    """Return a set that gets, with each convolution from now on, whether a GPU might compute it in TF32."""
    seen: set[bool] = set()
    forward = nn.Conv2d.forward

    def recorded(self: nn.Conv2d, given: Tensor) -> Tensor:
        seen.add(torch.backends.cudnn.allow_tf32)
        return forward(self, given)

    monkeypatch.setattr(nn.Conv2d, "forward", recorded)
    return seen
