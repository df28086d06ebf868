"""Decoder inputs with some subspaces set to zero (SSQ Fig. 5, FQGAN Fig. 3)."""

from __future__ import annotations

from collections.abc import Container, Sequence

import torch
from torch import Tensor


def keep_subspaces(subspaces: Sequence[Tensor], kept: Container[int]) -> Tensor:
    """Concatenate the subspaces (B, d_i, h, w) along the channels, with zeros for those that are not kept."""
    parts = [part if index in kept else torch.zeros_like(part) for index, part in enumerate(subspaces)]
    return torch.cat(parts, dim=1)
