"""Generated images against real ones: which figures there are, what they are called, and what each is a distance to."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from polytoken.metrics.extractor import Extractor
from polytoken.metrics.frechet import Gaussian, frechet_distance
from polytoken.metrics.image_set import ImageSet, Measured
from polytoken.metrics.kernel_distance import kernel_distance
from polytoken.metrics.precision_recall import precision_recall

Kind = Literal["train", "validation", "adm train", "unknown"]
Use = Literal["generation", "reconstruction"]

SPLIT = 5000  # images a split of the inception score, as ADM's evaluator has them
DEALT = 10  # splits of reconstructions: with 50,000 images, as many images a split
KID_SUBSET = 1000
Figures = dict[str, dict[str, Any]]  # by name: value, n, extractor and, of a distance, what it is to


@dataclass(frozen=True)
class Target:
    """The real images that generated ones are compared with.

    Args:
        extractor: the network that measured them.
        features: Gaussian of its pooled features.
        spatial: Gaussian of its maps; None leaves out sFID.
        rows: pooled features (N, D) of images; None leaves out precision, recall and KID.
        about: what stands beside every distance: ``reference`` in words, and what else is known.
        notes: what is to be said of it.
    """

    extractor: str
    features: Gaussian
    spatial: Gaussian | None
    rows: Tensor | None
    about: dict[str, Any]
    notes: tuple[str, ...] = ()

    @classmethod
    def of_images(cls, measured: Measured, images: str, kind: Kind = "validation") -> Target:
        """Images of a split that were measured here and now, named in words."""
        about = {"reference": images, "reference_kind": kind, "reference_n": measured.count}
        return cls(measured.extractor, measured.features, measured.spatial, measured.rows, about)


def kind_of(name: str) -> str:
    """What sort of figure it is: ``gfd/judge`` and ``rfd/judge`` are both ``fd``."""
    return re.sub(r"^[gr](?=(?:fid|fd|sfid|is|kid|kd)$)", "", name.split("/")[0])


def begin(extractor: Extractor, count: int, keep_rows: bool, use: Use = "generation") -> ImageSet:
    """An empty set for so many images; its score has ADM's splits with Inception, and one split with others.

    Reconstructions are dealt out to ten splits: a validation set is sorted by class, and 5,000 of its images in a row
    show a tenth of the classes.
    """
    if extractor.name != "inception":
        return ImageSet(extractor, keep_rows=keep_rows)
    if use == "reconstruction":
        return ImageSet(extractor, num_splits=DEALT, keep_rows=keep_rows)
    return ImageSet(extractor, num_splits=-(-count // SPLIT), split_size=SPLIT, keep_rows=keep_rows)


def figures_of(
    measured: Measured, target: Target | None, letter: str = "g", device: torch.device | None = None
) -> Figures:
    """All figures of a set of images, by name.

    Only Inception's Fréchet distance is an FID; others are ``fd``. The letter says what the images are: g generated, r
    reconstructed, none real.

    Args:
        measured: the images.
        target: real ones; None gives no distances.
        letter: of the names.
        device: where neighbours are sought; None is the CPU.
    """
    name = measured.extractor
    inception = name == "inception"
    common = {"n": measured.count, "extractor": name}
    figures: Figures = {}
    if not inception and measured.score is not None:  # Inception numbers its classes in another way
        figures[f"recognised/{name}"] = {"value": measured.recognised, **common}
    if measured.score is not None:
        figures[f"{letter}is/{name}"] = {"value": measured.score, **common, "splits": measured.splits}
    if target is None:
        return figures
    to = {**common, **target.about}
    distance = _distance(measured.features, target.features)
    figures[f"{letter}{'fid' if inception else 'fd'}/{name}"] = {"value": distance, **to}
    if measured.spatial is not None and target.spatial is not None:
        figures[f"{letter}sfid/{name}"] = {"value": _distance(measured.spatial, target.spatial), **to}
    if measured.rows is not None and target.rows is not None:
        to |= {"reference_rows": len(target.rows)}
        shares = precision_recall(target.rows, measured.rows, device=device)
        figures[f"precision/{name}"] = {"value": shares.precision, **to, "neighbours": 3}
        figures[f"recall/{name}"] = {"value": shares.recall, **to, "neighbours": 3}
        if min(len(measured.rows), len(target.rows)) >= KID_SUBSET:
            kid = kernel_distance(measured.rows, target.rows, subset_size=KID_SUBSET)
            about = {"deviation": kid.deviation, "subset_size": KID_SUBSET}
            figures[f"{letter}{'kid' if inception else 'kd'}/{name}"] = {"value": kid.mean, **to, **about}
    return figures


def _distance(first: Gaussian, second: Gaussian) -> float:
    """Of sets that are alike, the Fréchet distance rounds to a little below 0; what is not a number stays so."""
    return frechet_distance(first, second).clamp_min(0).item()
