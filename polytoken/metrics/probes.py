"""How much of an image's class lies in features: simple classifiers that are fitted to them while they stay frozen.

Linear probing as in ImageFolder (arXiv 2410.01756, Table 4), here for each subspace by itself; nearest class mean asks
the same without any training, which is the clustering by class that FQGAN shows as t-SNE (arXiv 2411.16681, Fig. 6).
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from polytoken.errors import UserError

Pooling = Literal["mean", "flatten"]


class Labelled(NamedTuple):
    """Features (n, D) float32 and labels (n,) int64."""

    features: Tensor
    labels: Tensor


class Accuracy(NamedTuple):
    """Share of n images that are given their label, and its standard error."""

    value: float
    standard_error: float


def pool(maps: Tensor, pooling: Pooling) -> Tensor:
    """Maps (B, d, h, w) to features, float32: their mean over positions (B, d), or all of them (B, d·h·w)."""
    return maps.float().mean((2, 3)) if pooling == "mean" else maps.float().flatten(1)


def standardise(train: Tensor, validation: Tensor) -> tuple[Tensor, Tensor]:
    """Both (n, D) with the mean and deviation of the training features, computed in float64; float32.

    A feature that is constant in training, but for rounding, becomes 0 there and is only shifted in validation.
    """
    rows = train.double()
    mean, deviation = rows.mean(0), rows.std(0, correction=0)
    constant = deviation <= 1e-6 * mean.abs().clamp_min(1e-30)
    scale = torch.where(constant, 1.0, deviation)
    return ((rows - mean) / scale).float(), ((validation.double() - mean) / scale).float()


def nearest_class_mean(train: Labelled, features: Tensor) -> Tensor:
    """Labels (n,) of the training classes whose mean lies nearest to each of the features (n, D)."""
    classes, position = train.labels.unique(return_inverse=True)
    sums = torch.zeros(len(classes), train.features.shape[1], dtype=torch.float64)
    sums.index_add_(0, position, train.features.double())
    means = sums / position.bincount().unsqueeze(1)
    # |x − μ|² = |x|² − 2 x·μ + |μ|², and |x|² is the same for all classes
    scores = features.double() @ means.T - means.square().sum(1) / 2
    return classes[scores.argmax(1)]


def logistic_regression(train: Labelled, features: Tensor, most_iterations: int = 1000) -> Tensor:
    """Labels (n,) that a multinomial logistic regression (L2 penalty |W|²/2, scikit-learn's default) gives features.

    Raises:
        ValueError: if the training images are all of one class.
    """
    from sklearn.linear_model import LogisticRegression

    if len(train.labels.unique()) < 2:
        raise UserError(
            "a probe needs training images of two classes or more: these are all of one; name a labelled set"
        )
    # float64, in which two machines agree on the label
    model = LogisticRegression(max_iter=most_iterations).fit(train.features.double().numpy(), train.labels.numpy())
    return torch.from_numpy(model.predict(features.double().numpy()))


def accuracy(predicted: Tensor, labels: Tensor) -> Accuracy:
    """How many labels (n,) were found, of n ≥ 1."""
    share = float((predicted == labels).double().mean())
    return Accuracy(share, math.sqrt(share * (1 - share) / len(labels)))


def majority(train: Tensor, validation: Tensor) -> Accuracy:
    """What naming the commonest training label every time would find; both (n,)."""
    classes, counts = train.unique(return_counts=True)
    return accuracy(classes[counts.argmax()].expand(len(validation)), validation)
