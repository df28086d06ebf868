"""The classifier of an embedded preset where published protocols have Inception."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from polytoken.classifier import SmallClassifier
from polytoken.files import file_sha256
from polytoken.images import from_uint8
from polytoken.metrics.extractor import ImageFeatures, check_images
from polytoken.precision import full_precision


@dataclass(frozen=True)
class Judge:
    """A small classifier as an extractor: its pooled features and its logits, of images in their own size.

    Args:
        network: the classifier, frozen.
        path: its file.
        name: what figures are called by.
    """

    network: SmallClassifier
    path: Path
    name: str = "judge"

    @property
    def num_features(self) -> int:
        """D of its pooled features."""
        return self.network.widths[-1]

    @property
    def num_classes(self) -> int:
        """C of its logits."""
        return self.network.num_classes

    @property
    def num_spatial(self) -> None:
        """It is not asked for maps."""

    @property
    def resize(self) -> str:
        """Images are seen as they are."""
        return "none"

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.network.linear.weight.device

    @cached_property
    def sha256(self) -> str:
        """Digest of its file."""
        return file_sha256(self.path)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> ImageFeatures:
        """Images uint8 (B, 3, H, W) to pooled features and logits."""
        check_images(images)
        with full_precision(self.device):
            pooled = self.network.embed(from_uint8(images.to(self.device).contiguous()))
            return ImageFeatures(pooled, self.network.linear(pooled))
