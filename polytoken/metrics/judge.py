"""Judge: the small classifier that takes the place of Inception for an embedded preset."""

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
    """Extractor over a small classifier: its pooled features and its logits, of images in their own size.

    Args:
        network: the classifier, frozen.
        path: its file.
        name: name in the metrics.
        floats: take float images in [-1, 1], such as the unclamped output of a decoder, in their own memory layout,
            instead of uint8.
    """

    network: SmallClassifier
    path: Path
    name: str = "judge"
    floats: bool = False

    @property
    def num_features(self) -> int:
        return self.network.widths[-1]

    @property
    def num_classes(self) -> int:
        return self.network.num_classes

    @property
    def num_spatial(self) -> None:
        return None

    @property
    def resize(self) -> str:
        return "none"

    @property
    def device(self) -> torch.device:
        return self.network.linear.weight.device

    @cached_property
    def sha256(self) -> str:
        return file_sha256(self.path)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> ImageFeatures:
        if not self.floats:
            check_images(images)
            images = from_uint8(images.to(self.device).contiguous())
        with full_precision(self.device):
            pooled = self.network.embed(images.to(self.device))
            return ImageFeatures(pooled, self.network.linear(pooled))
