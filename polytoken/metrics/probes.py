"""Probes: simple classifiers fitted to frozen features.

Linear probing follows ImageFolder (arXiv 2410.01756, Table 4) and Ideal (arXiv 2606.11096, Table 1), here of any named
feature. Nearest class mean measures without training the clustering by class that FQGAN shows as t-SNE (arXiv
2411.16681, Fig. 6). Nearest neighbours vote as in DINO (arXiv 2104.14294) and before it in arXiv 1805.01978.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from polytoken.errors import UserError
from polytoken.features import check_feature, features_of

if TYPE_CHECKING:
    from polytoken.tokenizers import Tokenizer

Pooling = Literal["mean", "flatten", "attention"]
ATTENTION_POOLED = ("foundation/deep", "decoded/deep")
TEMPERATURE = 0.07  # of the votes of neighbours, in DINO
MOST_SIMILARITIES = 2**26  # of float32 at a time: 256 MiB


class Labelled(NamedTuple):
    """Features (n, D) float32 and labels (n,) int64."""

    features: Tensor
    labels: Tensor


class PooledFeatures:
    """Pooled features of a split, by name (`polytoken.features`).

    Args:
        tokenizer: a frozen tokenizer.
        names: names of the features.
        pooling: ``mean`` or ``flatten`` over the positions; ``attention`` is the foundation model's own pooling of its
            last features, `foundation/deep` and `decoded/deep`.

    Raises:
        MissingFileError: the file of a stand-in is missing.
        UserError: the tokenizer has no such feature, or no attention that pools it.
    """

    def __init__(self, tokenizer: Tokenizer, names: Sequence[str], pooling: Pooling) -> None:
        if pooling == "attention":
            check_attention(tokenizer, names)
        for name in names:
            check_feature(tokenizer, name, "this tokenizer")
        self._tokenizer, self._pooling = tokenizer, pooling
        self._rows: dict[str, list[Tensor]] = {name: [] for name in names}
        self._labels: list[Tensor] = []

    @torch.no_grad()
    def add(self, images: Tensor, labels: Tensor) -> None:
        """Add the features of images (B, 3, H, W), in float32, with the labels (B,)."""
        maps = features_of(self._tokenizer, images.to(self._tokenizer.last_layer.device), *self._rows)
        for rows, one in zip(self._rows.values(), maps, strict=True):
            rows.append(self._pool(one).cpu())
        self._labels.append(labels)

    @property
    def labels(self) -> Tensor:
        """Labels (n,)."""
        return torch.cat(self._labels)

    def of(self, name: str) -> Labelled:
        """One feature of all images."""
        return Labelled(torch.cat(self._rows[name]), self.labels)

    def _pool(self, maps: Tensor) -> Tensor:
        if self._pooling == "attention":
            return self._tokenizer.foundation.pool(maps.permute(0, 2, 3, 1))  # type: ignore[operator, union-attr]
        return pool(maps, self._pooling)


def check_attention(tokenizer: Tokenizer, names: Sequence[str]) -> None:
    """Raise UserError unless a foundation model pools all of these features by its own attention."""
    foundation = getattr(tokenizer, "foundation", None)
    if foundation is None:
        raise UserError("pooling attention is that of a foundation model, and this tokenizer has none: take mean")
    if wrong := [name for name in names if name not in ATTENTION_POOLED]:
        raise UserError(
            f"pooling attention reads the last feature of the foundation model, {' or '.join(ATTENTION_POOLED)}, and "
            f"not {wrong[0]}: choose those, or pooling mean"
        )
    foundation.check_pool()


class Accuracy(NamedTuple):
    """Share of n images that are assigned to their label, and its standard error."""

    value: float
    standard_error: float


def pool(maps: Tensor, pooling: Literal["mean", "flatten"]) -> Tensor:
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


def nearest_neighbours(train: Labelled, features: Tensor, k: int = 20) -> Tensor:
    """Labels (n,) by a vote of the k training images of greatest cosine, each with weight exp(cosine / 0.07).

    k is 20 in DINO. Fewer training images all vote.

    Args:
        train: training images.
        features: (n, D).
        k: neighbours, at least 1.
    """
    classes, position = train.labels.unique(return_inverse=True)
    rows = functional.normalize(train.features.float(), dim=1)
    k = min(k, len(rows))
    labels = []
    for some in functional.normalize(features.float(), dim=1).split(max(1, MOST_SIMILARITIES // len(rows))):
        cosines, neighbours = (some @ rows.T).topk(k, dim=1)
        votes = torch.zeros(len(some), len(classes))
        votes.scatter_add_(1, position[neighbours], (cosines / TEMPERATURE).exp())
        labels.append(classes[votes.argmax(1)])
    return torch.cat(labels)


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
