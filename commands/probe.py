"""What a frozen tokenizer's vectors know of the class: `python -m commands.probe --run runs/digits/tokenizer/fq_dual`.

Fits a linear probe to the vectors of each subspace and of all, before and after quantization, and asks for the nearest
class mean; reads training and validation images by the configuration in the run, as validation shows them. Prints a
table and writes `probes.json` beside the run's `metrics.json`. See docs/evaluation.md, "Probes".
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import lightning
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from artifacts.provenance import commit, versions
from commands.preset import BATCH, image_data, real_images
from datamodules.images import ImageDataModule
from datamodules.sources.base import Split
from lightning_modules.linear_probe import LinearProbe
from polytoken import records
from polytoken.errors import UserError
from polytoken.loading import Checkpoint, load_tokenizer
from polytoken.metrics.probes import (
    Accuracy,
    Labelled,
    Pooling,
    accuracy,
    logistic_regression,
    majority,
    nearest_class_mean,
    pool,
    standardise,
)
from polytoken.precision import full_precision
from polytoken.tokenizers import Tokenizer

Vectors = Literal["before", "after"]
ALL = "all"
MOST_ENTRIES = 2**27  # of float64: 1 GiB
EPOCHS, FIT_BATCH = 10, 4096


class Features:
    """Pooled vectors of a split: per side of the quantization and subspace (n, D), and the labels (n,)."""

    def __init__(self, tokenizer: Tokenizer, vectors: Sequence[Vectors], pooling: Pooling) -> None:
        self._tokenizer, self._vectors, self._pooling = tokenizer, vectors, pooling
        self._rows: dict[Vectors, list[list[Tensor]]] = {side: [] for side in vectors}
        self._labels: list[Tensor] = []

    @torch.no_grad()
    def add(self, images: Tensor, labels: Tensor) -> None:
        """Encode images (B, 3, H, W) in float32."""
        device = self._tokenizer.last_layer.device
        with full_precision(device):
            encoding = self._tokenizer.encode(images.to(device))
        for side in self._vectors:
            maps = encoding.latents if side == "before" else encoding.subspaces
            self._rows[side].append([pool(part, self._pooling).cpu() for part in maps])
        self._labels.append(labels)

    def of(self, side: Vectors, subspace: int | None) -> Labelled:
        """The features of a subspace, or of all of them side by side."""
        batches = self._rows[side]
        chosen = [torch.cat(parts, 1) if subspace is None else parts[subspace] for parts in batches]
        return Labelled(torch.cat(chosen), torch.cat(self._labels))


def probe(
    run: Path,
    subspaces: Sequence[str] = (),
    vectors: Sequence[Vectors] = ("before", "after"),
    pooling: Pooling = "mean",
    max_train: int | None = None,
    device: torch.device | None = None,
) -> dict[str, Any]:
    """Fit all probes, and return what ``probes.json`` keeps.

    Args:
        run: of the tokenizer.
        subspaces: numbers, 0 the visual one, or ``all``; none is every subspace and all of them.
        vectors: sides of the quantization.
        pooling: over positions.
        max_train: the most training images, evenly chosen; None is all.
        device: of the tokenizer; None is the CPU.

    Raises:
        FileNotFoundError: if the run has no checkpoint.
        UserError: if the run's configuration reads no images, it has no such subspace, or max_train is too few.
        ValueError: if it is no tokenizer's, or its features are not finite.
    """
    tokenizer = load_tokenizer(run).to(device or torch.device("cpu"))
    if max_train is not None and max_train < 2:
        raise UserError(f"--max-train is {max_train}: a probe is fitted to 2 images at least")
    count = len(tokenizer.subspace_channels)
    names = list(subspaces) or [*map(str, range(count)), *([ALL] if count > 1 else [])]
    if wrong := [name for name in names if name != ALL and name not in map(str, range(count))]:
        raise UserError(f"there is no subspace {wrong[0]} in {run}: it has 0 … {count - 1}, and {ALL}")
    data = image_data(_directory(run) / "config.yaml")
    train = _encode(tokenizer, data, "train", vectors, pooling, max_train)
    validation = _encode(tokenizer, data, "validation", vectors, pooling)
    probes = []
    for side in vectors:
        for name in names:
            subspace = None if name == ALL else int(name)
            given, asked = train.of(side, subspace), validation.of(side, subspace)
            if not bool(given.features.isfinite().all() and asked.features.isfinite().all()):
                raise UserError(f"vectors of subspace {name} in {run} are not finite: train it anew")
            probes += _probes(given, asked, {"subspace": name, "vectors": side})
    checkpoint = Checkpoint.open(run)
    classes = given.labels.unique()
    return {
        "probes": probes,
        "chance": 1 / len(classes),
        "majority": majority(given.labels, asked.labels).value,
        "n_train": len(given.labels),
        "n_validation": len(asked.labels),
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
    """Labels (n,) that a linear probe gives features, and how it was fitted.

    By scikit-learn's exact solver where features and class probabilities of the training images, as float64, take at
    most 1 GiB each; in batches otherwise.
    """
    size = len(train.features) * max(train.features.shape[1], len(train.labels.unique()))
    if size <= MOST_ENTRIES:
        return logistic_regression(train, features), "scikit-learn, lbfgs, C=1"
    return fit_in_batches(train, features), f"AdamW, {EPOCHS} epochs, batches of {FIT_BATCH}"


def fit_in_batches(train: Labelled, features: Tensor, epochs: int = EPOCHS, batch_size: int = FIT_BATCH) -> Tensor:
    """Labels (n,) that a linear layer trained by AdamW gives features; the seed of its order is fixed."""
    classes, targets = train.labels.unique(return_inverse=True)
    model = LinearProbe(train.features.shape[1], len(classes))
    order = torch.Generator().manual_seed(0)
    loader = DataLoader(TensorDataset(train.features, targets), batch_size, shuffle=True, generator=order)
    trainer = lightning.pytorch.Trainer(
        max_epochs=epochs,
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(model, loader)
    model.cpu().eval()
    with torch.no_grad():
        return classes[torch.cat([model(batch).argmax(1) for batch in features.split(batch_size)])]


def _probes(train: Labelled, validation: Labelled, about: dict[str, str]) -> list[dict[str, Any]]:
    """Both probes of one set of features."""
    scaled, asked = standardise(train.features, validation.features)
    given = Labelled(scaled, train.labels)
    predicted, fit = fit_linear(given, asked)
    means = nearest_class_mean(given, asked)

    def row(kind: str, found: Accuracy, fit: str) -> dict[str, Any]:
        return {"probe": kind, **about, "num_features": scaled.shape[1], **found._asdict(), "fit": fit}

    return [
        row("linear", accuracy(predicted, validation.labels), fit),
        row("nearest_class_mean", accuracy(means, validation.labels), "closed form"),
    ]


def _encode(
    tokenizer: Tokenizer,
    data: ImageDataModule,
    split: Split,
    vectors: Sequence[Vectors],
    pooling: Pooling,
    at_most: int | None = None,
) -> Features:
    features = Features(tokenizer, vectors, pooling)
    length = min(len(data.source.split(split)), at_most or sys.maxsize)
    batches = real_images(data, split, at_most)
    for images, labels in track(batches, f"{split} images, batches", total=-(-length // BATCH), transient=True):
        assert labels is not None
        features.add(images, labels)
    return features


def _directory(run: Path) -> Path:
    """The run's, also where one of its checkpoints is named."""
    return run if run.is_dir() else run.parent.parent


def show(result: dict[str, Any], console: Console) -> None:
    """Print a row a subspace and side."""
    table = Table(title=f"validation images given their class, {result['n_validation']} in all")
    for column in ("subspace", "quantization", "features", "linear probe", "nearest class mean"):
        table.add_column(column, justify="left" if column in ("subspace", "quantization") else "right")
    rows: dict[tuple[str, str, str], dict[str, str]] = {}
    for one in result["probes"]:
        key = (one["subspace"], one["vectors"], str(one["num_features"]))
        rows.setdefault(key, {})[one["probe"]] = f"{one['value']:.1%} ± {one['standard_error']:.1%}"
    for key, texts in rows.items():
        table.add_row(*key, texts["linear"], texts["nearest_class_mean"])
    console.print(table)
    console.print(
        f"chance {result['chance']:.1%}, always the commonest class {result['majority']:.1%}; "
        f"fitted to {result['n_train']} training images; ± is one standard error"
    )


def main(arguments: list[str] | None = None) -> None:
    """Probe, write `probes.json`, and print a table; exits with code 2 on bad input."""
    parser = argparse.ArgumentParser(prog="python -m commands.probe", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--run", type=Path, required=True, help="run of a tokenizer: runs/digits/tokenizer/fq_dual")
    parser.add_argument("--subspaces", nargs="+", default=[], help="0 (visual), 1 …, all; by default every one")
    parser.add_argument("--vectors", nargs="+", choices=get_args(Vectors), default=list(get_args(Vectors)))
    parser.add_argument("--pooling", choices=get_args(Pooling), default="mean", help="over the positions")
    parser.add_argument("--max-train", type=int, help="most training images, evenly chosen; by default all")
    given = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        result = probe(given.run, given.subspaces, given.vectors, given.pooling, given.max_train, device)
    except (UserError, FileNotFoundError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    path = _directory(given.run) / "probes.json"
    records.write(path, result)
    show(result, Console())
    print(f"all of it: {path}")


if __name__ == "__main__":
    main()
