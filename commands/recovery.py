"""Recovery of a tokenizer's codebooks: `python -m commands.recovery --run runs/digits/tokenizer/vq`.

Records what the quantizer reads of training images, scales its codebooks by a wrong factor and by its inverse, trains
the quantizer alone for some steps, and measures the share of codes in use over these steps (after UR-AUC of StableVQ,
arXiv 2609.26774). Prints a table and writes `recovery.json` into the run. See docs/analysis.md, "Recovery".
"""

from __future__ import annotations

from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from artifacts.run_files import RECOVERY
from commands import tables
from commands.measuring import batches_of, images_of, measured_with, save
from commands.program import best_device, new_parser, print_tables, run
from polytoken.errors import UserError
from polytoken.loading import Checkpoint
from polytoken.metrics.recovery import Recovery, codebook_weights, quantized_features, usage_curve

FACTOR = 100.0
MAX_IMAGES = 1000
NO_CODEBOOK = "there is no codebook to train: codes are points of a grid, or the bottleneck is continuous"


def recovery(
    run: Path,
    settings: Recovery | None = None,
    factor: float = FACTOR,
    max_images: int = MAX_IMAGES,
    device: torch.device | None = None,
) -> dict[str, Any]:
    """Measure the recovery from both wrong scales; returns the content of `recovery.json`.

    Args:
        run: run of the tokenizer.
        settings: of the training.
        factor: of the larger scale; the smaller one is its inverse.
        max_images: upper bound of the training images, evenly spread.
        device: None is the CPU.

    Raises:
        MissingFileError: if the run has no checkpoint.
        UserError: if it is not a tokenizer's, reads no images, or a setting is out of its range.
    """
    settings = settings or Recovery()
    check_factor(factor)
    if max_images < 1:
        raise UserError(f"--max-images is {max_images}: features are of at least 1 image")
    checkpoint = Checkpoint.open(run)
    measured = measured_with(checkpoint, "torch")
    tokenizer = checkpoint.tokenizer().to(device or torch.device("cpu"))
    result: dict[str, Any] = {
        "curves": [],
        "factor": factor,
        "n": 0,
        "settings": asdict(settings),
        "notes": [NO_CODEBOOK],
        **measured,
    }
    if not codebook_weights(tokenizer.quantizer):
        return result
    batches = batches_of(images_of(run, tokenizer.image_size), "train", max_images)
    features = quantized_features(tokenizer, (batch["image"].to(device) for batch in batches))
    curves = [
        {"factor": scale, **asdict(curve), "area": curve.area()}
        for scale in (1 / factor, 1.0, factor)
        for curve in [usage_curve(tokenizer.quantizer, features, scale, settings)]
    ]
    return result | {"curves": curves, "n": len(features), "notes": []}


def check_factor(factor: float) -> None:
    """Raise UserError unless the larger of the wrong scales is larger than 1."""
    if factor <= 1:
        raise UserError(f"--factor is {factor:g}: the wrong scales are it and its inverse, so it is above 1")


def metrics_of(result: dict[str, Any]) -> dict[str, float | None]:
    """Mean use over the training for each codebook: from a smaller scale, from a larger one, and the mean of both."""
    metrics: dict[str, float | None] = {}
    if result["curves"]:
        smaller, _, larger = (curve["area"] for curve in result["curves"])
        for index, areas in enumerate(zip(smaller, larger, strict=True)):
            metrics[f"val/recovery/{index}"] = fmean(areas)
            metrics[f"val/recovery_smaller/{index}"], metrics[f"val/recovery_larger/{index}"] = areas
    return metrics


def show(result: dict[str, Any]) -> None:
    """Print the table and the notes."""
    print_tables(tables.recovery(result))
    for note in result["notes"]:
        print(f"note: {note}")


def work(given: Namespace) -> None:
    """Measure, write `recovery.json`, and print a table."""
    settings = Recovery(given.steps, given.learning_rate, given.batch_size, seed=given.seed)
    result = recovery(given.run, settings, given.factor, given.max_images, best_device())
    show(result)
    print(f"all results: {save(given.run, RECOVERY, result)}")


def main(arguments: list[str] | None = None) -> None:
    """Run the program."""
    parser = new_parser("commands.recovery", __doc__)
    parser.add_argument("--run", type=Path, required=True, help="run of a tokenizer: runs/digits/tokenizer/vq")
    parser.add_argument("--factor", type=float, default=FACTOR, help="wrong scale; the other one is its inverse")
    parser.add_argument("--steps", type=int, default=Recovery.steps, help="steps of training")
    parser.add_argument("--learning-rate", type=float, default=Recovery.learning_rate, help="constant rate of Adam")
    parser.add_argument("--batch-size", type=int, default=Recovery.batch_size, help="images a step")
    parser.add_argument("--max-images", type=int, default=MAX_IMAGES, help="most training images, evenly spread")
    parser.add_argument("--seed", type=int, default=0, help="seed of the batches")
    run(parser, work, arguments)


if __name__ == "__main__":
    main()
