"""Interface of discriminators."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

import torch
from torch import Tensor, nn


class Discriminator(nn.Module, ABC):
    """Maps images to logits.

    All its parameters are trained: a frozen backbone is held as a ``polytoken.frozen.FrozenNetwork``.
    """

    def prepare(self, device: torch.device) -> None:  # noqa: B027 - optional
        """Load a frozen backbone; called once before training, so that a missing file stops the run early."""

    def check_size(self, size: int) -> None:  # noqa: B027 - optional
        """Raise UserError for images of (size, size) pixels that it cannot read, before the step at which it starts."""

    @property
    def networks(self) -> frozenset[Path]:
        """Files of the frozen networks that it reads."""
        return frozenset()

    def frozen_identities(self) -> dict[str, str]:
        """Identity of each frozen network that it reads, by name; loads them."""
        return {}

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] to logits of any shape."""
