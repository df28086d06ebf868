"""Actions of the page (commands.app) on a run, without the browser: median seconds of each.

python -m benchmarks.app --generator runs/digits/stage2/fq_dual [--repeats 5]
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.machine import seconds
from commands.app import actions
from commands.app.actions import place_at
from commands.app.explored import Explored
from commands.program import print_table
from polytoken.sampling import Guidance

IMAGES = 9


def actions_of(explored: Explored) -> dict[str, Callable[[], object]]:
    """The actions by name; an exchange decodes as many images as the tab shows."""
    tokenizer, pipeline = explored.tokenizer, explored.pipeline
    spec, everything = tokenizer.require_codes(), range(len(tokenizer.subspace_channels))
    first, second = explored.image(0), explored.image(1)
    codes, place = explored.codes, place_at(spec, len(spec.scales) - 1, 0.5, 0.5)
    assert codes is not None and pipeline is not None
    region = torch.ones(tokenizer.grid, dtype=torch.bool)
    choices = [[0], [], *([i] for i in everything), [*everything]]
    labels, rules = [index % pipeline.num_classes for index in range(IMAGES)], pipeline.rules(Guidance(2.0))
    return {
        "reconstruct": lambda: actions.reconstruct(tokenizer, first, everything),
        "exchange codes": lambda: actions.edit(tokenizer, first, second, choices, region),
        "compare codes": lambda: codes.nearest(actions.encode(tokenizer, first), spec, 0, place, 12),
        f"generate {IMAGES} images": lambda: actions.generate(pipeline, labels, rules, 0),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--generator", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    rows = []
    for name, action in actions_of(Explored.load(None, given.generator)).items():
        taken = [seconds(action) for _ in range(1 + given.repeats)]
        rows.append((name, f"{taken[0]:.3f}", f"{statistics.median(taken[1:]):.3f}"))
    print_table(f"seconds, {torch.get_num_threads()} threads", ("action", "first", "median of the others"), rows)


if __name__ == "__main__":
    main()
