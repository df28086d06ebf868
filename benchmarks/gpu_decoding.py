"""Decoding of the first positions of images, and what it must read, for `benchmarks.gpu`."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from polytoken.generators import AutoregressiveGenerator
from polytoken.sampling import CategoricalSampler, RowNoise

RULES = CategoricalSampler(guidance=2.0)


class _EnoughError(Exception):
    """Ends a generation early."""


def write(generator: AutoregressiveGenerator, labels: Tensor, positions: int) -> None:
    """Write the first positions of images; all of them, if decoding is compiled."""
    whole = positions >= generator.spec.num_positions
    step, count = generator.trunk.step, 0

    def counted(*arguments: Any) -> Tensor:
        nonlocal count
        if count == positions:
            raise _EnoughError
        count += 1
        return step(*arguments)

    if not whole:
        generator.trunk.step = counted  # type: ignore[method-assign]
    try:
        generator.sample(labels, RULES, RowNoise(0, 0, len(labels), labels.device))
    except _EnoughError:
        pass
    finally:
        if not whole:
            del generator.trunk.step


def bytes_per_position(generator: AutoregressiveGenerator, rows: int, positions: int) -> float:
    """Bytes that one of the first positions must read: all weights but the embeddings, and the mean of keys and values.

    Position i reads those of i + 1 positions.
    """
    weights = sum(one.weight.nbytes for one in generator.modules() if isinstance(one, nn.Linear))
    cache = generator.trunk.new_cache(1).nbytes / generator.spec.num_positions
    return weights + rows * cache * (positions + 1) / 2
