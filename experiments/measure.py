"""Stages of an experiment that train nothing: `python -m experiments.measure {probe,normal} … --output DIRECTORY`.

Each writes what it measured into `metrics.json` of the directory, as the validation at the end of a fit does.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from artifacts.provenance import commit, machine
from polytoken import records
from polytoken.errors import UserError

POINTS = 500_000  # as many as iFSQ draws
LEVELS = 17  # the paper's 4 bits


def probes(run: Path, max_train: int | None = None) -> tuple[dict[str, float], int]:
    """Accuracies of the probes of a tokenizer, `probe/<linear or nearest_class_mean>/<before or after>/<subspace>`.

    Writes `probes.json` into the tokenizer's run as well, as `commands.probe` does.

    Args:
        run: of the tokenizer.
        max_train: the most training images, evenly chosen; None is all.

    Returns:
        The accuracies, and of how many images.
    """
    from commands.probe import probe

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    result = probe(run, max_train=max_train, device=device)
    records.write(run / "probes.json", result)
    named = {f"probe/{one['probe']}/{one['vectors']}/{one['subspace']}": one["value"] for one in result["probes"]}
    return named, result["n_validation"]


def normal(alpha: float, points: int = POINTS) -> tuple[dict[str, float], int]:
    """How uniform 2σ(αx) − 1 is for standard normal x (iFSQ Fig. 2), computed at evenly spaced quantiles.

    Args:
        alpha: α.
        points: how many quantiles.

    Returns:
        `ks`, `rmse_uniform`, and `entropy_ratio` of 17 levels by the published rounding; and the number of points.
    """
    from polytoken.metrics.uniformity import entropy_ratio, ks_to_uniform, rmse_to_uniform
    from polytoken.quantizers.finite_scalar import bound, vectors_to_digits

    quantiles = (torch.arange(points, dtype=torch.float64) + 0.5) / points
    values = bound(torch.special.ndtri(quantiles), alpha)
    counts = torch.bincount(vectors_to_digits(values, torch.tensor(LEVELS)), minlength=LEVELS)
    figures = {
        "ks": ks_to_uniform(values),
        "rmse_uniform": rmse_to_uniform(values),
        "entropy_ratio": entropy_ratio(counts),
    }
    return {name: float(value) for name, value in figures.items()}, points


def main(arguments: list[str] | None = None) -> None:
    """Measure and write; exits with code 2 on bad input."""
    parser = argparse.ArgumentParser("python -m experiments.measure", description=(__doc__ or "").split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("probe", help="what a tokenizer's vectors know of the class")
    command.add_argument("--run", type=Path, required=True, help="of the tokenizer")
    command.add_argument("--max-train", type=int, help="most training images; by default all")
    command.add_argument("--output", type=Path, required=True, help="directory of metrics.json")
    command = commands.add_parser("normal", help="how uniform a bounded normal variable is")
    command.add_argument("--alpha", type=float, required=True, help="slope of the bound")
    command.add_argument("--output", type=Path, required=True, help="directory of metrics.json")
    given = parser.parse_args(arguments)
    try:
        figures, count = probes(given.run, given.max_train) if given.command == "probe" else normal(given.alpha)
    except (UserError, FileNotFoundError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    section = {"metrics": figures, "n": count, "machine": machine(), "commit": commit()}
    records.write(given.output / "metrics.json", {"validate": section})


if __name__ == "__main__":
    main()
