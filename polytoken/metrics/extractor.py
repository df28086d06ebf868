"""What a network that figures lean on must be, whichever it is: the judge, Inception, DINOv2, CLIP."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from polytoken.errors import UserError


class ImageFeatures(NamedTuple):
    """What a network makes of B images, float32."""

    pooled: Tensor
    """(B, D)."""
    logits: Tensor | None = None
    """(B, C), of a network that knows classes."""
    spatial: Tensor | None = None
    """(B, S), of a network whose maps are measured too (sFID)."""


class Extractor(Protocol):
    """A frozen network, which stands in the names of the figures that lean on it: ``gfd/judge``."""

    @property
    def name(self) -> str:
        """What figures are called by."""

    @property
    def num_features(self) -> int:
        """D of the pooled features."""

    @property
    def num_classes(self) -> int | None:
        """C of the logits; None if the network gives none."""

    @property
    def num_spatial(self) -> int | None:
        """S of the flattened maps; None if the network gives none."""

    @property
    def resize(self) -> str:
        """What becomes of an image's size before the network sees it, in words."""

    @property
    def sha256(self) -> str | None:
        """Digest of the file of weights; None if they came straight from a hub."""

    @property
    def device(self) -> torch.device:
        """Where the network is; images are brought there."""

    def __call__(self, images: Tensor) -> ImageFeatures:
        """Images uint8 (B, 3, H, W) to their features, in float32 whatever precision is set around the call.

        The memory layout of the images does not matter; their number in a batch does, in the last bits of float32.
        """


def check_images(images: Tensor) -> None:
    """Refuse what is no batch of 8-bit colour images.

    Args:
        images: should be uint8 (B, 3, H, W).

    Raises:
        TypeError: if they are no uint8, e.g. floats in [-1, 1].
        ValueError: if their shape is another one.
    """
    if images.dtype != torch.uint8:
        raise TypeError(
            f"images are {images.dtype}, and metrics want uint8 from 0 to 255: polytoken.metrics.to_uint8 makes it"
        )
    if images.ndim != 4 or images.shape[1] != 3:
        raise UserError(f"images have the shape {tuple(images.shape)}, and metrics want (B, 3, H, W)")
