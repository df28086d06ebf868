"""Probes of a frozen tokenizer for the class: `python -m commands.probe --run runs/digits/tokenizer/fq_dual`.

Fits a linear probe to the vectors of each subspace and of all, before and after quantization, and assigns images to the
nearest class mean. Training and validation images come from the configuration in the run, as validation shows them.
Prints a table and writes `probes.json` into the run. See docs/evaluation.md, "Guidance and probes".

Linear probing of ImageFolder (Table 4: 58.0 % of ImageNet) reads features before quantization, as a mean over tokens:
`--vectors before --pooling mean`. Its release does not say which branch it takes, and fits one linear layer by AdamW
(rate and decay 1e-4, 10 epochs, steps at 30, 60 and 90 %) to features that are not standardised.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from rich.progress import track
from torch import Tensor

from artifacts.provenance import commit, versions
from artifacts.run_files import PROBES, Probe, Probes
from commands.preset import BATCH, image_data, real_images, spread
from commands.program import best_device, new_parser, print_table, run
from datamodules.images import ImageDataModule
from datamodules.sources.base import Split
from lightning_modules.linear_probe import EPOCHS, FIT_BATCH, fit_in_batches
from polytoken import records
from polytoken.errors import UserError
from polytoken.loading import Checkpoint, load_tokenizer
from polytoken.metrics.probes import (
    Labelled,
    Pooling,
    SubspaceFeatures,
    Vectors,
    accuracy,
    logistic_regression,
    majority,
    nearest_class_mean,
    standardise,
)
from polytoken.tokenizers import Tokenizer

ALL = "all"
MOST_ENTRIES = 2**27  # of float64: 1 GiB


def probe(
    run: Path,
    subspaces: Sequence[str] = (),
    vectors: Sequence[Vectors] = ("before", "after"),
    pooling: Pooling = "mean",
    max_train: int | None = None,
    device: torch.device | None = None,
) -> Probes:
    """Fit all probes; returns the content of ``probes.json``.

    Args:
        run: run of the tokenizer.
        subspaces: numbers, 0 the visual one, or ``all``; by default every subspace and all of them together.
        vectors: sides of the quantization.
        pooling: pooling over positions.
        max_train: upper bound of the training images, evenly spread; None is all.
        device: device of the tokenizer; None is the CPU.

    Raises:
        MissingFileError: if the run has no checkpoint.
        UserError: if it is not a tokenizer's, reads no images, lacks a subspace, or its vectors are not finite.
    """
    tokenizer = load_tokenizer(run).to(device or torch.device("cpu"))
    if max_train is not None and max_train < 2:
        raise UserError(f"--max-train is {max_train}: a probe is fitted to at least 2 images")
    count = len(tokenizer.subspace_channels)
    names = list(subspaces) or [*map(str, range(count)), *([ALL] if count > 1 else [])]
    if wrong := [name for name in names if name != ALL and name not in map(str, range(count))]:
        raise UserError(f"there is no subspace {wrong[0]} in {run}: it has 0 … {count - 1}, and {ALL}")
    data = image_data(directory_of(run) / "config.yaml")
    train = _encode(tokenizer, data, "train", vectors, pooling, max_train)
    validation = _encode(tokenizer, data, "validation", vectors, pooling)
    probes: list[Probe] = []
    for side in vectors:
        for name in names:
            fitted, tested = (features.of(side, None if name == ALL else int(name)) for features in (train, validation))
            if not bool(fitted.features.isfinite().all() and tested.features.isfinite().all()):
                raise UserError(f"vectors of subspace {name} in {run} are not finite: train it again")
            probes += ({**one, "subspace": name, "vectors": side} for one in _probes(fitted, tested))
    checkpoint = Checkpoint.open(run)
    classes = train.labels.unique()
    return {
        "probes": probes,
        "chance": 1 / len(classes),
        "majority": majority(train.labels, validation.labels).value,
        "n_train": len(train.labels),
        "n_validation": len(validation.labels),
        "num_classes": len(classes),
        "settings": {"pooling": pooling, "precision": "float32", "standardised": "by training mean and deviation"},
        "checkpoint": {
            "path": str(checkpoint.path),
            "sha256": checkpoint.sha256,
            "step": checkpoint.step,
            "averaged": checkpoint.averaged,
        },
        "versions": versions("torch", "lightning", "scikit-learn"),
        "commit": commit(),
    }


def fit_linear(train: Labelled, features: Tensor) -> tuple[Tensor, str]:
    """Labels (n,) by a linear probe, and the way it was fitted.

    scikit-learn's exact solver fits it if features and class probabilities of the training images, as float64, take at
    most 1 GiB each; otherwise AdamW in batches.
    """
    size = len(train.features) * max(train.features.shape[1], len(train.labels.unique()))
    if size <= MOST_ENTRIES:
        return logistic_regression(train, features), "scikit-learn, lbfgs, C=1"
    return fit_in_batches(train, features), f"AdamW, {EPOCHS} epochs, batches of {FIT_BATCH}"


def _probes(train: Labelled, validation: Labelled) -> Iterator[dict[str, Any]]:
    """Results of both probes on one set of features."""
    scaled, tested = standardise(train.features, validation.features)
    fitted = Labelled(scaled, train.labels)
    linear = fit_linear(fitted, tested)
    means = nearest_class_mean(fitted, tested), "closed form"
    for kind, (predicted, fit) in {"linear": linear, "nearest_class_mean": means}.items():
        found = accuracy(predicted, validation.labels)
        yield {"probe": kind, "num_features": scaled.shape[1], **found._asdict(), "fit": fit}


def _encode(
    tokenizer: Tokenizer,
    data: ImageDataModule,
    split: Split,
    vectors: Sequence[Vectors],
    pooling: Pooling,
    at_most: int | None = None,
) -> SubspaceFeatures:
    features = SubspaceFeatures(tokenizer, vectors, pooling)
    length = len(data.source.split(split))
    batches, total = real_images(data, split, spread(length, at_most)), min(length, at_most or length)
    for batch in track(batches, f"{split} images, batches", total=-(-total // BATCH), transient=True):
        features.add(batch["image"], batch["label"])
    return features


def save(run: Path, result: Probes) -> Path:
    """Write `probes.json` into the directory of a run."""
    path = directory_of(run) / PROBES
    records.write(path, result)
    return path


def directory_of(run: Path) -> Path:
    """Directory of a run that is named by itself or by one of its checkpoints."""
    return run if run.is_dir() else run.parent.parent


def show(result: Probes) -> None:
    """Print a row per subspace and side."""
    rows: dict[tuple[str, str, str], dict[str, str]] = {}
    for one in result["probes"]:
        key = (one["subspace"], one["vectors"], str(one["num_features"]))
        rows.setdefault(key, {})[one["probe"]] = f"{one['value']:.1%} ± {one['standard_error']:.1%}"
    print_table(
        f"share of {result['n_validation']} validation images assigned to their class",
        ("subspace", "quantization", "features", "linear probe", "nearest class mean"),
        ([*key, texts["linear"], texts["nearest_class_mean"]] for key, texts in rows.items()),
        left=2,
    )
    print(
        f"chance {result['chance']:.1%}, always the most common class {result['majority']:.1%}; "
        f"fitted to {result['n_train']} training images; ± is one standard error"
    )


def work(given: Namespace) -> None:
    """Probe, write `probes.json`, and print a table."""
    result = probe(given.run, given.subspaces, given.vectors, given.pooling, given.max_train, best_device())
    show(result)
    print(f"all results: {save(given.run, result)}")


def main(arguments: list[str] | None = None) -> None:
    """Run the program."""
    parser = new_parser("commands.probe", __doc__)
    parser.add_argument("--run", type=Path, required=True, help="run of a tokenizer: runs/digits/tokenizer/fq_dual")
    parser.add_argument("--subspaces", nargs="+", default=[], help="0 (visual), 1 …, all; by default every one")
    parser.add_argument("--vectors", nargs="+", choices=get_args(Vectors), default=list(get_args(Vectors)))
    parser.add_argument("--pooling", choices=get_args(Pooling), default="mean", help="pooling over the positions")
    parser.add_argument("--max-train", type=int, help="most training images, evenly spread; by default all")
    run(parser, work, arguments)


if __name__ == "__main__":
    main()
