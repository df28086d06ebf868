"""Metrics of a set of images against real ones: their names, their values, and the reference of each distance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from polytoken.metrics.frechet import Gaussian, frechet_distance
from polytoken.metrics.image_set import ImageStatistics
from polytoken.metrics.kernel_distance import kernel_distance
from polytoken.metrics.precision_recall import precision_recall

Kind = Literal["train", "validation", "adm train", "unknown"]

KID_SUBSET = 1000
Metrics = dict[str, dict[str, Any]]  # by name: value, n, extractor and, for a distance, its reference


@dataclass(frozen=True)
class Target:
    """Real images that other images are compared with.

    Args:
        extractor: name of the network that measured them.
        features: Gaussian of its pooled features.
        spatial: Gaussian of its maps; None omits sFID.
        rows: pooled features (N, D) of images; None omits precision, recall and KID.
        about: entries added to every distance: ``reference`` in words, its kind and its number of images.
        notes: sentences for the reader of the metrics.
    """

    extractor: str
    features: Gaussian
    spatial: Gaussian | None
    rows: Tensor | None
    about: dict[str, Any]
    notes: tuple[str, ...] = ()

    @classmethod
    def of_images(cls, measured: ImageStatistics, images: str, kind: Kind = "validation") -> Target:
        """Target of images measured in this process, described by ``images``."""
        about = {"reference": images, "reference_kind": kind, "reference_n": measured.count}
        return cls(measured.extractor, measured.features, measured.spatial, measured.rows, about)


def image_metrics(
    measured: ImageStatistics, target: Target | None, letter: str = "g", device: torch.device | None = None
) -> Metrics:
    """All metrics of a set of images, by name.

    The Fréchet distance is called ``fid`` for Inception only and ``fd`` for every other network. The letter names the
    kind of images: g generated, r reconstructed, empty for real ones.

    Args:
        measured: the images.
        target: real images; None gives no distances.
        letter: prefix of the names.
        device: device of the search for neighbours; None is the CPU.
    """
    name = measured.extractor
    inception = name == "inception"
    common = {"n": measured.count, "extractor": name}
    metrics: Metrics = {}
    if not inception and measured.score is not None:  # Inception numbers its classes in another way
        metrics[f"recognised/{name}"] = {"value": measured.recognised, **common}
    if measured.score is not None:
        metrics[f"{letter}is/{name}"] = {"value": measured.score, **common, "splits": measured.splits}
    if target is None:
        return metrics
    to = {**common, **target.about}
    distance = _distance(measured.features, target.features)
    metrics[f"{letter}{'fid' if inception else 'fd'}/{name}"] = {"value": distance, **to}
    if measured.spatial is not None and target.spatial is not None:
        metrics[f"{letter}sfid/{name}"] = {"value": _distance(measured.spatial, target.spatial), **to}
    if measured.rows is not None and target.rows is not None:
        to |= {"reference_rows": len(target.rows)}
        shares = precision_recall(target.rows, measured.rows, device=device)
        metrics[f"precision/{name}"] = {"value": shares.precision, **to, "neighbours": 3}
        metrics[f"recall/{name}"] = {"value": shares.recall, **to, "neighbours": 3}
        if min(len(measured.rows), len(target.rows)) >= KID_SUBSET:
            kid = kernel_distance(measured.rows, target.rows, subset_size=KID_SUBSET)
            about = {"deviation": kid.deviation, "subset_size": KID_SUBSET}
            metrics[f"{letter}{'kid' if inception else 'kd'}/{name}"] = {"value": kid.mean, **to, **about}
    return metrics


def _distance(first: Gaussian, second: Gaussian) -> float:
    """Fréchet distance, at least 0: that of similar sets can round to a little below. NaN stays NaN."""
    return frechet_distance(first, second).clamp_min(0).item()
