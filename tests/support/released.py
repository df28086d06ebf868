"""Checkpoints with the names and shapes of released ones, and small numbers for weights."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from tests.support.released_networks import dit_positions

ADOBE = {  # the record of a release for research only
    "name": "imagefolder/VP2-4096",
    "source": "ImageFolder, lxa9867/ImageFolder",
    "licence": "Adobe Research License",
    "licence_on_hub": "other",
    "non_commercial": True,
    "sha256": "0" * 64,
}
KEYS = Path(__file__).parents[1] / "polytoken/pretrained/released/keys"
RANGE = re.compile(r"\[(\d+)-(\d+)]")


def released_state(keys: str) -> dict[str, Tensor]:
    """All entries of a released network by its list ``keys/<keys>.txt``: one number a row, drawn from a fixed seed.

    The rows are views of one column, so that a billion weights cost nothing.
    """
    random = torch.Generator().manual_seed(0)
    state = {name: _entry(shape, dtype, random) for name, shape, dtype in _entries(keys)}
    return {**state, **dit_positions(state)} if "pos_embed" in state and "feat_rope.freqs_cos" in state else state


def small_state(keys: str, sizes: Mapping[int, int], depths: Mapping[str, int]) -> dict[str, Tensor]:
    """A small network with the names of a released one and ordinary random weights.

    Args:
        keys: list ``keys/<keys>.txt``.
        sizes: released sizes of axes, and the sizes they shrink to; others stay.
        depths: numbers of modules that remain of those numbered after a name, such as ``{"layers.": 2}``.
    """
    random = torch.Generator().manual_seed(0)
    return {
        name: _drawn(name, [sizes.get(size, size) for size in shape], dtype, random)
        for name, shape, dtype in _entries(keys)
        if all(_number(name, before) < depth for before, depth in depths.items())
    }


def double(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same weights in float64."""
    return {name: value.double() if value.is_floating_point() else value for name, value in state.items()}


def _number(name: str, before: str) -> int:
    _, found, after = name.rpartition(before)
    return int(after.split(".")[0]) if found else -1


def _drawn(name: str, shape: list[int], dtype: torch.dtype, random: torch.Generator) -> Tensor:
    if not dtype.is_floating_point:
        return torch.zeros(shape, dtype=dtype)
    drawn = torch.randn(shape, generator=random, dtype=dtype)
    if len(shape) == 1:
        return drawn / 4 + (1 if name.endswith("weight") else 0)
    return drawn * shape[0] ** 0.5 / drawn.numel() ** 0.5  # of unit variance after a sum over the columns


def _entries(keys: str) -> Iterator[tuple[str, list[int], torch.dtype]]:
    for line in (KEYS / f"{keys}.txt").read_text().splitlines():
        pattern, sizes, *kind = line.split()
        shape = [] if sizes == "-" else [int(size) for size in sizes.split(",")]
        dtype = getattr(torch, kind[0]) if kind else torch.float32
        ranges = [range(int(first), int(last) + 1) for first, last in RANGE.findall(pattern)]
        for numbers in itertools.product(*ranges):
            places = iter(numbers)
            yield RANGE.sub(lambda _, places=places: str(next(places)), pattern), shape, dtype


def _entry(shape: list[int], dtype: torch.dtype, random: torch.Generator) -> Tensor:
    if not dtype.is_floating_point:
        return torch.zeros(1, dtype=dtype).expand(shape)
    column = [*shape[:1], *[1] * (len(shape) - 1)]
    return (0.02 * torch.randn(column, generator=random, dtype=dtype)).expand(shape)
