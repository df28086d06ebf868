"""Interface of feature extractors for image metrics: the judge, Inception, DINOv2, CLIP."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from polytoken.errors import UserError


class ImageFeatures(NamedTuple):
    """Features of B images, float32.

    Attributes:
        pooled: (B, D).
        logits: (B, C), from a network that knows classes.
        spatial: (B, S), from a network whose maps are measured as well (sFID).
    """

    pooled: Tensor
    logits: Tensor | None = None
    spatial: Tensor | None = None


class Extractor(Protocol):
    """A frozen network that names the metrics computed from its features: ``gfd/judge``."""

    @property
    def name(self) -> str:
        """Name in the metrics."""

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
        """Resizing of an image before the network sees it, in words."""

    @property
    def sha256(self) -> str | None:
        """Digest of the weights' file; None if they came from a hub."""

    @property
    def device(self) -> torch.device:
        """Device of the network, to which images are moved."""

    def __call__(self, images: Tensor) -> ImageFeatures:
        """Features of images uint8 (B, 3, H, W), computed in float32 regardless of autocast and TF32.

        The result does not depend on the memory layout of the images; the batch size changes the last bits of float32.
        """


def check_images(images: Tensor) -> None:
    """Raise unless images are a batch of 8-bit colour images.

    Args:
        images: expected to be uint8 (B, 3, H, W).

    Raises:
        TypeError: if the dtype is not uint8, e.g. floats in [-1, 1].
        UserError: if the shape is wrong.
    """
    if images.dtype != torch.uint8:
        raise TypeError(
            f"images are {images.dtype}, expected uint8 from 0 to 255: convert them by polytoken.metrics.to_uint8"
        )
    if images.ndim != 4 or images.shape[1] != 3:
        raise UserError(f"images have the shape {tuple(images.shape)}, expected (B, 3, H, W)")
