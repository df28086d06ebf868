"""Stages of an experiment that train nothing: `python -m experiments.programs {probe,normal} … --output DIRECTORY`.

Each writes its metrics into `metrics.json` of the directory, as the validation at the end of a fit does.
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import torch

from artifacts.metrics import merge_section
from artifacts.provenance import commit, machine
from artifacts.run_files import METRICS, Measured, Metrics
from commands.program import best_device, new_parser, run

POINTS = 500_000  # as many as iFSQ draws
LEVELS = 17  # the paper's 4 bits


def probe(directory: Path, max_train: int | None = None) -> tuple[Metrics, int]:
    """Accuracy of linear and nearest-class-mean probes of a tokenizer; also writes its `probes.json`.

    Args:
        directory: The tokenizer's run.
        max_train: Maximum number of training images, evenly chosen; None means all.

    Returns:
        `probe/<linear or nearest_class_mean>/<before or after>/<subspace>`, and the number of images.
    """
    from commands import probe as program

    found = program.probe(directory, max_train=max_train, device=best_device())
    program.save(directory, found)
    named: Metrics = {
        f"probe/{one['probe']}/{one['vectors']}/{one['subspace']}": one["value"] for one in found["probes"]
    }
    return named, found["n_validation"]


def normal(alpha: float, points: int = POINTS) -> tuple[Metrics, int]:
    """Uniformity of 2σ(αx) − 1 for standard normal x (iFSQ Fig. 2), computed at evenly spaced quantiles.

    Returns:
        `ks`, `rmse_uniform`, and `entropy_ratio` of 17 levels by the published rounding; and the number of points.
    """
    from polytoken.metrics.uniformity import entropy_ratio, ks_to_uniform, rmse_to_uniform
    from polytoken.quantizers.finite_scalar import bound, vectors_to_digits

    quantiles = (torch.arange(points, dtype=torch.float64) + 0.5) / points
    values = bound(torch.special.ndtri(quantiles), alpha)
    counts = torch.bincount(vectors_to_digits(values, torch.tensor(LEVELS)), minlength=LEVELS)
    metrics = {
        "ks": ks_to_uniform(values),
        "rmse_uniform": rmse_to_uniform(values),
        "entropy_ratio": entropy_ratio(counts),
    }
    return {name: float(value) for name, value in metrics.items()}, points


def _work(options: Namespace) -> None:
    metrics, n = probe(options.run, options.max_train) if options.command == "probe" else normal(options.alpha)
    section: Measured = {"metrics": metrics, "n": n, "machine": machine(), "commit": commit()}
    merge_section(options.output / METRICS, "validate", section)


def main(arguments: list[str] | None = None) -> None:
    """Measure and write; exits with code 2 on bad input."""
    parser = new_parser("experiments.programs", __doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for_probe = commands.add_parser("probe", help="class information in a tokenizer's vectors")
    for_probe.add_argument("--run", type=Path, required=True, help="directory of the tokenizer's run")
    for_probe.add_argument("--max-train", type=int, help="maximum number of training images (default: all)")
    for_normal = commands.add_parser("normal", help="uniformity of a bounded normal variable")
    for_normal.add_argument("--alpha", type=float, required=True, help="slope of the bound")
    for command in (for_probe, for_normal):
        command.add_argument("--output", type=Path, required=True, help="directory of metrics.json")
    run(parser, _work, arguments)


if __name__ == "__main__":
    main()
