"""Probes of a frozen tokenizer for the class: `python -m commands.probe --run runs/digits/tokenizer/fq_dual`.

Fits a linear probe to each named feature, and assigns images to the nearest class mean and by a vote of their nearest
neighbours. A feature is `before/0`, `before/all`, `after/0` … (subspaces before and after quantization), or for a
tokenizer on a foundation model `foundation/deep`, `decoded/deep` … (what that model computes, and what the tokenizer
reconstructs of it). Training and validation images come from the configuration in the run, as validation shows them.
Prints a table and writes `probes.json` into the run. See docs/evaluation.md, "Guidance and probes".

Linear probing of ImageFolder (Table 4: 58.0 % of ImageNet) reads features before quantization, as a mean over tokens:
`--features before/all --pooling mean`. Its release does not say which branch it takes, and fits one linear layer by
AdamW (rate and decay 1e-4, 10 epochs, steps at 30, 60 and 90 %) to features that are not standardised. Ideal (Table 1)
probes the reconstructed feature, `--features decoded/deep`, and states neither pooling nor optimizer.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from artifacts.run_files import PROBES, Probe, Probes
from commands import tables
from commands.measuring import batches_of, images_of, measured_with, save
from commands.program import best_device, new_parser, print_tables, run
from lightning_modules.linear_probe import EPOCHS, FIT_BATCH, fit_in_batches
from polytoken.errors import UserError
from polytoken.features import ALL, check_feature, feature_names
from polytoken.loading import Checkpoint
from polytoken.metrics.probes import (
    ATTENTION_POOLED,
    TEMPERATURE,
    Labelled,
    PooledFeatures,
    Pooling,
    accuracy,
    logistic_regression,
    majority,
    nearest_class_mean,
    nearest_neighbours,
    standardise,
)
from polytoken.tokenizers import Tokenizer

NEIGHBOURS = 20
MOST_ENTRIES = 2**27  # of float64: 1 GiB


def probe(
    run: Path,
    features: Sequence[str] = (),
    pooling: Pooling = "mean",
    k: int = NEIGHBOURS,
    max_train: int | None = None,
    device: torch.device | None = None,
) -> Probes:
    """Fit all probes; returns the content of ``probes.json``.

    Args:
        run: run of the tokenizer.
        features: names (`polytoken.features`); by default every feature that the pooling can read.
        pooling: pooling over positions.
        k: neighbours that vote.
        max_train: upper bound of the training images, evenly spread; None is all.
        device: device of the tokenizer; None is the CPU.

    Raises:
        MissingFileError: if the run has no checkpoint.
        UserError: if it is not a tokenizer's, reads no images, lacks a feature or its pooling, or a feature is not
            finite.
    """
    checkpoint = Checkpoint.open(run)
    measured = measured_with(checkpoint, "torch", "lightning", "scikit-learn")
    tokenizer = checkpoint.tokenizer().to(device or torch.device("cpu"))
    if max_train is not None and max_train < 2:
        raise UserError(f"--max-train is {max_train}: a probe is fitted to at least 2 images")
    if k < 1:
        raise UserError(f"--neighbours is {k}: at least 1 image votes")
    for name in features:
        check_feature(tokenizer, name, str(run))
    names = list(features) or default_features(tokenizer, pooling)
    train, validation = (PooledFeatures(tokenizer, names, pooling) for _ in range(2))
    data = images_of(run, tokenizer.image_size)
    for read, batches in ((train, batches_of(data, "train", max_train)), (validation, batches_of(data, "validation"))):
        for batch in batches:
            read.add(batch["image"], batch["label"])
    probes: list[Probe] = []
    for name in names:
        fitted, tested = train.of(name), validation.of(name)
        if not bool(fitted.features.isfinite().all() and tested.features.isfinite().all()):
            raise UserError(f"the feature {name} of {run} is not finite: train it again")
        probes += ({"feature": name, **one} for one in _probes(fitted, tested, k))
    classes = train.labels.unique()
    return {
        "probes": probes,
        "chance": 1 / len(classes),
        "majority": majority(train.labels, validation.labels).value,
        "n_train": len(train.labels),
        "n_validation": len(validation.labels),
        "num_classes": len(classes),
        "settings": {
            "pooling": pooling,
            "neighbours": k,
            "temperature": TEMPERATURE,
            "precision": "float32",
            "standardised": "by training mean and deviation; not for neighbours",
        },
        **measured,
    }


def default_features(tokenizer: Tokenizer, pooling: Pooling) -> list[str]:
    """Names of all features that differ and that the pooling can read."""
    if pooling == "attention":
        return list(ATTENTION_POOLED)
    one = len(tokenizer.subspace_channels) == 1
    return [name for name in feature_names(tokenizer) if not (one and name.endswith(f"/{ALL}"))]


def fit_linear(train: Labelled, features: Tensor) -> tuple[Tensor, str]:
    """Labels (n,) by a linear probe, and the way it was fitted.

    scikit-learn's exact solver fits it if features and class probabilities of the training images, as float64, take at
    most 1 GiB each; otherwise AdamW in batches.
    """
    size = len(train.features) * max(train.features.shape[1], len(train.labels.unique()))
    if size <= MOST_ENTRIES:
        return logistic_regression(train, features), "scikit-learn, lbfgs, C=1"
    return fit_in_batches(train, features), f"AdamW, {EPOCHS} epochs, batches of {FIT_BATCH}"


def _probes(train: Labelled, validation: Labelled, k: int) -> Iterator[dict[str, Any]]:
    """Results of all probes of one feature."""
    scaled, tested = standardise(train.features, validation.features)
    fitted = Labelled(scaled, train.labels)
    found = {
        "linear": fit_linear(fitted, tested),
        "nearest_class_mean": (nearest_class_mean(fitted, tested), "closed form"),
        "nearest_neighbours": (nearest_neighbours(train, validation.features, k), f"k={min(k, len(train.labels))}"),
    }
    for kind, (predicted, fit) in found.items():
        share = accuracy(predicted, validation.labels)
        yield {"probe": kind, "num_features": scaled.shape[1], **share._asdict(), "fit": fit}


def work(given: Namespace) -> None:
    """Probe, write `probes.json`, and print a table."""
    result = probe(given.run, given.features, given.pooling, given.neighbours, given.max_train, best_device())
    print_tables(tables.probes(result))
    print(f"all results: {save(given.run, PROBES, result)}")


def main(arguments: list[str] | None = None) -> None:
    """Run the program."""
    parser = new_parser("commands.probe", __doc__)
    parser.add_argument("--run", type=Path, required=True, help="run of a tokenizer: runs/digits/tokenizer/fq_dual")
    parser.add_argument(
        "--features", nargs="+", default=[], help="before/0 after/all decoded/deep …; by default every one"
    )
    parser.add_argument("--pooling", choices=get_args(Pooling), default="mean", help="pooling over the positions")
    parser.add_argument("--neighbours", type=int, default=NEIGHBOURS, help="nearest neighbours that vote (k)")
    parser.add_argument("--max-train", type=int, help="most training images, evenly spread; by default all")
    run(parser, work, arguments)


if __name__ == "__main__":
    main()
