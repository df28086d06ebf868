"""Benchmark of the heads."""

import torch

from benchmarks.heads import draw, generators
from experiments.specification import load


def test_every_generator_draws_a_batch() -> None:
    with torch.inference_mode():
        for name, generator in generators().items():
            draw(generator, batch=2)
            assert not generator.training, name


def test_each_line_of_the_experiment_is_measured() -> None:
    lines = {row.line for row in load("polytoken/heads").rows}
    assert len(lines) == len(generators())
