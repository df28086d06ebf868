"""Correspondence between the weights of a released network and those of the same network here, in both directions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import prod
from typing import Any

import torch
from torch import Tensor

from polytoken.errors import UserError
from polytoken.specs import LatentSpec

State = Mapping[str, Tensor]
Shapes = Mapping[str, tuple[int, ...]]
LISTED, LENGTH = 10, 200  # names that an error lists at most, and their characters
DIGITS = 6  # of a module's number at most; Python refuses to read thousands


@dataclass(frozen=True)
class Joined:
    """Tensors that are stored together on one side: concatenated in order, both sides are the same rows.

    Args:
        released: names in the released file, of equal numbers of rows.
        ours: names here, of equal numbers of rows.
    """

    released: tuple[str, ...]
    ours: tuple[str, ...]


@dataclass(frozen=True)
class Permuted:
    """A tensor whose axes have another order here, or are merged or split, such as the kernel of a patch convolution.

    Args:
        released: name in the released file.
        ours: name here.
        axes: released axes in the order that they have here.
        sizes: of the axes that the released tensor is split into before; None for its own.
    """

    released: str
    ours: str
    axes: tuple[int, ...]
    sizes: tuple[int, ...] | None = None

    def to_ours(self, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Return a released tensor in our shape; UserError if it does not fit."""
        sizes = self.sizes or tensor.shape
        if len(sizes) != len(self.axes) or not prod(sizes) == tensor.numel() == prod(shape):
            raise UserError(f"the file holds weights of other shapes: {self.released} {(*tensor.shape,)} for {shape}")
        return tensor.reshape(sizes).permute(self.axes).reshape(shape)

    def to_released(self, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Return our tensor in the released shape."""
        sizes = self.sizes or shape
        inverse = sorted(range(len(sizes)), key=self.axes.__getitem__)
        return tensor.reshape([sizes[axis] for axis in self.axes]).permute(inverse).reshape(shape)


@dataclass(frozen=True)
class Layout:
    """Names of a network's weights.

    Args:
        pairs: released and our names of modules or tensors; the longest one that fits a weight decides.
        joined: weights that are stored together on one side.
        permuted: tensors of ``pairs`` whose axes have another order here.
        dropped: patterns of released entries that are no weights of the network here: frozen teachers, counters, tables
            that follow from the sizes.
    """

    pairs: tuple[tuple[str, str], ...]
    joined: tuple[Joined, ...] = ()
    permuted: tuple[Permuted, ...] = ()
    dropped: tuple[str, ...] = ()

    def left_out(self, state: State) -> dict[str, str]:
        """Return the names of a released state that the network here does not have, and the pattern of each."""
        found = ((name, pattern) for name in state for pattern in self.dropped if fnmatchcase(name, pattern))
        return dict(found)

    def to_ours(self, state: State, shapes: Shapes) -> dict[str, Tensor]:
        """Convert released weights.

        Args:
            state: all entries of the released file.
            shapes: of our weights; tensors that differ from them only in axes of size 1 are reshaped.

        Raises:
            UserError: if weights are unknown, missing, or of another shape.
        """
        left_out = self.left_out(state)
        kept = {name: tensor for name, tensor in state.items() if name not in left_out}
        for one in self.permuted:
            if one.released in kept:
                kept[one.released] = one.to_ours(kept[one.released], shapes[one.ours])
        joined = tuple((rows.released, rows.ours) for rows in self.joined)
        return _renamed(kept, dict(self.pairs), joined, shapes)

    def to_released(self, weights: State, shapes: Shapes) -> dict[str, Tensor]:
        """Convert our weights to the released names; arguments and errors as for :meth:`to_ours`."""
        permuted = {one.ours: one.to_released(weights[one.ours], shapes[one.released]) for one in self.permuted}
        joined = tuple((rows.ours, rows.released) for rows in self.joined)
        return _renamed({**weights, **permuted}, {ours: released for released, ours in self.pairs}, joined, shapes)


@dataclass(frozen=True)
class Network:
    """A released network, described.

    Args:
        section: class path and arguments of the network here.
        layout: names of its weights.
        latents: shape and scale of the latents that a generator of latents models; None for one of codes.
    """

    section: dict[str, Any]
    layout: Layout
    latents: LatentSpec | None = None


def shapes_of(state: State) -> Shapes:
    """Return the shape of each weight."""
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def numbered(state: State, before: str) -> int:
    """Return how many entries are numbered after ``before``: 12 for ``layers.`` if ``layers.11`` is the last.

    Raises:
        UserError: if there is none, or the numbers have gaps.
    """
    found = {name[len(before) :].split(".")[0] for name in state if name.startswith(before)}
    numbers = {int(number) for number in found if number.isdecimal() and len(number) <= DIGITS}
    if not numbers or numbers != set(range(len(numbers))):
        raise UserError(f"the file has no weights {before}0, {before}1, … in a row: it is of another architecture")
    return len(numbers)


def size(state: State, name: str, axis: int = 0) -> int:
    """Return the length of an axis of a weight that decides the architecture.

    Raises:
        UserError: if there is no such weight, or it is empty.
    """
    tensor = state.get(name)
    if tensor is None or tensor.ndim <= axis or not tensor.numel():
        raise UserError(f"the file has no weight {name}: it is of another architecture")
    return int(tensor.shape[axis])


def _renamed(
    state: State,
    names: Mapping[str, str],
    joined: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...],
    shapes: Shapes,
) -> dict[str, Tensor]:
    rest, result = dict(state), dict[str, Tensor]()
    unknown: list[str] = []
    for sources, targets in joined:
        if all(name in rest for name in sources):
            rows = torch.cat([rest.pop(name) for name in sources])
            result.update(zip(targets, rows.chunk(len(targets)), strict=True))
    for name, tensor in rest.items():
        target = _target(name, names)
        if target is None or target not in shapes:
            unknown.append(name)
        else:
            result[target] = tensor
    _complain("holds weights that this architecture does not have", unknown)
    _complain("lacks weights of this architecture", [name for name in shapes if name not in result])
    other = [name for name, tensor in result.items() if _squeezed(tensor.shape) != _squeezed(shapes[name])]
    _complain(
        "holds weights of other shapes", [f"{name} {(*result[name].shape,)} for {shapes[name]}" for name in other]
    )
    return {name: result[name].reshape(shape) for name, shape in shapes.items()}


def _target(name: str, names: Mapping[str, str]) -> str | None:
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        head = names.get(".".join(parts[:end]))
        if head is not None:
            return ".".join([head, *parts[end:]])
    return None


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(length for length in shape if length != 1) if prod(shape) else tuple(shape)


def _complain(what: str, names: list[str]) -> None:
    if names:
        more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
        raise UserError(f"the file {what}: {', '.join(name[:LENGTH] for name in names[:LISTED])}{more}")
