"""A set of images in the eyes of a network: one pass, all figures."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from metrics.frechet import FeatureStatistics, Gaussian
from metrics.inception_score import InceptionScore


class Extractor(Protocol):
    """A network that figures lean on, and that stands in their names: ``gfd/judge``."""

    @property
    def name(self) -> str:
        """What figures are called by."""

    @property
    def num_features(self) -> int:
        """D."""

    @property
    def num_classes(self) -> int:
        """C."""

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) in [-1, 1] to features (B, D) and logits (B, C)."""


class ImageSet:
    """Statistics of a set of images.

    Args:
        extractor: the network.
    """

    def __init__(self, extractor: Extractor) -> None:
        self._extractor = extractor
        self._features = FeatureStatistics(extractor.num_features)
        self._score = InceptionScore(extractor.num_classes)
        self._recognised = 0
        self._labelled = 0
        self.count = 0

    @torch.inference_mode()
    def add(self, images: Tensor, labels: Tensor | None = None) -> None:
        """Add images (B, 3, H, W) in [-1, 1], as they are displayed, and their labels (B,) where they are known.

        Raises:
            ValueError: if features are not finite.
        """
        features, logits = self._extractor(images)
        if not bool(torch.isfinite(features).all() and torch.isfinite(logits).all()):
            raise ValueError(f"the features that {self._extractor.name} makes of the images are not finite")
        self._features.update(features.cpu())
        self._score.update(logits.cpu())
        self.count += len(images)
        if labels is not None:
            self._recognised += int((logits.argmax(1).cpu() == labels.cpu()).sum())
            self._labelled += len(labels)

    @property
    def features(self) -> Gaussian:
        """Mean and covariance of the features."""
        return self._features.compute()

    @property
    def score(self) -> float:
        """The inception score's formula on the logits, without splits."""
        return float(self._score.compute())

    @property
    def recognised(self) -> float | None:
        """Share of the labelled images that the network gives their label, 0 … 1; None if none has a label."""
        return self._recognised / self._labelled if self._labelled else None
