"""Probes: simple classifiers fitted to frozen features.

Linear probing follows ImageFolder (arXiv 2410.01756, Table 4), here per subspace. Nearest class mean measures without
training the clustering by class that FQGAN shows as t-SNE (arXiv 2411.16681, Fig. 6).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from polytoken.errors import UserError
from polytoken.precision import full_precision

if TYPE_CHECKING:
    from polytoken.tokenizers import Tokenizer

Pooling = Literal["mean", "flatten"]
Vectors = Literal["before", "after"]  # of the quantization


class Labelled(NamedTuple):
    """Features (n, D) float32 and labels (n,) int64."""

    features: Tensor
    labels: Tensor


class SubspaceFeatures:
    """Pooled vectors of a split, per side of the quantization and subspace.

    Args:
        tokenizer: a frozen tokenizer.
        vectors: sides of the quantization.
        pooling: pooling over positions.
    """

    def __init__(self, tokenizer: Tokenizer, vectors: Sequence[Vectors], pooling: Pooling) -> None:
        self._tokenizer, self._pooling = tokenizer, pooling
        self._rows: dict[Vectors, list[list[Tensor]]] = {side: [] for side in vectors}
        self._labels: list[Tensor] = []

    @torch.no_grad()
    def add(self, images: Tensor, labels: Tensor) -> None:
        """Encode images (B, 3, H, W) in float32, and keep the features with the labels (B,)."""
        device = self._tokenizer.last_layer.device
        with full_precision(device):
            encoding = self._tokenizer.encode(images.to(device))
        for side, rows in self._rows.items():
            maps = encoding.latents if side == "before" else encoding.subspaces
            rows.append([pool(one, self._pooling).cpu() for one in maps])
        self._labels.append(labels)

    @property
    def labels(self) -> Tensor:
        """Labels (n,)."""
        return torch.cat(self._labels)

    def of(self, side: Vectors, subspace: int | None) -> Labelled:
        """Features of a subspace, or of all of them concatenated."""
        chosen = [torch.cat(maps, 1) if subspace is None else maps[subspace] for maps in self._rows[side]]
        return Labelled(torch.cat(chosen), self.labels)


class Accuracy(NamedTuple):
    """Share of n images that are assigned to their label, and its standard error."""

    value: float
    standard_error: float


def pool(maps: Tensor, pooling: Pooling) -> Tensor:
    """Pool maps (B, d, h, w) to float32 features: the mean over positions (B, d), or all of them (B, d·h·w)."""
    return maps.float().mean((2, 3)) if pooling == "mean" else maps.float().flatten(1)


def standardise(train: Tensor, validation: Tensor) -> tuple[Tensor, Tensor]:
    """Standardise both (n, D) by the training mean and deviation, computed in float64; returns float32.

    A feature that is constant in training, up to rounding, becomes 0 there and is only shifted in validation.
    """
    rows = train.double()
    mean, deviation = rows.mean(0), rows.std(0, correction=0)
    constant = deviation <= 1e-6 * mean.abs().clamp_min(1e-30)
    scale = torch.where(constant, 1.0, deviation)
    return ((rows - mean) / scale).float(), ((validation.double() - mean) / scale).float()


def nearest_class_mean(train: Labelled, features: Tensor) -> Tensor:
    """Labels (n,) of the training classes with the mean nearest to each of the features (n, D)."""
    classes, position = train.labels.unique(return_inverse=True)
    sums = torch.zeros(len(classes), train.features.shape[1], dtype=torch.float64)
    sums.index_add_(0, position, train.features.double())
    means = sums / position.bincount().unsqueeze(1)
    # |x − μ|² = |x|² − 2 x·μ + |μ|², and |x|² is the same for all classes
    scores = features.double() @ means.T - means.square().sum(1) / 2
    return classes[scores.argmax(1)]


def logistic_regression(train: Labelled, features: Tensor, most_iterations: int = 1000) -> Tensor:
    """Labels (n,) by multinomial logistic regression (L2 penalty |W|²/2, scikit-learn's default).

    Raises:
        UserError: if all training images have one class.
    """
    from sklearn.linear_model import LogisticRegression

    if len(train.labels.unique()) < 2:
        raise UserError("a probe needs training images of two or more classes, got one: name a labelled set")
    # float64, so that two machines agree on the label
    model = LogisticRegression(max_iter=most_iterations).fit(train.features.double().numpy(), train.labels.numpy())
    return torch.from_numpy(model.predict(features.double().numpy()))


def accuracy(predicted: Tensor, labels: Tensor) -> Accuracy:
    """Share of correct labels (n,), n ≥ 1."""
    share = float((predicted == labels).double().mean())
    return Accuracy(share, math.sqrt(share * (1 - share) / len(labels)))


def majority(train: Tensor, validation: Tensor) -> Accuracy:
    """Accuracy of always predicting the most common training label; both (n,)."""
    classes, counts = train.unique(return_counts=True)
    return accuracy(classes[counts.argmax()].expand(len(validation)), validation)
