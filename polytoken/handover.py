"""Handover of weights from one stage of the curriculum to the next (SSQ section 4.2)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from polytoken.errors import UserError

if TYPE_CHECKING:
    from polytoken.generators.base import Generator, SubCode


CLASS_EMBEDDING = "class_embedding.weight"


@dataclass(frozen=True)
class Handover:
    """Sorted names of tensors.

    Args:
        carried: tensors of the target that now hold weights of the source.
        fresh: the other tensors of the target.
        left_behind: tensors of the source that were not used.
    """

    carried: tuple[str, ...]
    fresh: tuple[str, ...]
    left_behind: tuple[str, ...]

    def __str__(self) -> str:
        """Three lines, repeated blocks folded: ``trunk.blocks.*.ffn_norm.weight (24)``."""
        rows = (("carried", self.carried), ("fresh", self.fresh), ("left behind", self.left_behind))
        return "\n".join(f"{title} ({len(names)}): {_folded(names)}" for title, names in rows)


@torch.no_grad()
def carry_over(
    source: Mapping[str, Tensor], target: Generator, sub_code: SubCode = None, unused: Collection[str] = ()
) -> Handover:
    """Copy the weights of an earlier stage into a generator, and list them.

    The generator says which weights carry over (:meth:`Generator.carried`) and adjusts the others.

    Args:
        source: state dict of the earlier generator.
        target: the generator of the next stage, changed in place.
        sub_code: the one sub-code of the same tokenizer that the source was trained on; ``all`` if it was trained on
            the same sub-codes in the same order; None if it was trained on other codes.
        unused: tensors of the source that stay behind.

    Raises:
        UserError: if the two do not fit, naming the first tensor that differs. Nothing is changed then.
    """
    pairs = target.carried({name: tensor for name, tensor in source.items() if name not in unused}, sub_code)
    state = target.state_dict()
    for name, origin in pairs.items():
        state[name].copy_(source[origin])
    target.after_handover(sub_code)
    return Handover(
        carried=tuple(sorted(pairs)),
        fresh=tuple(sorted(set(state) - set(pairs))),
        left_behind=tuple(sorted(set(source) - set(pairs.values()))),
    )


def by_class(
    source: Mapping[str, Tensor], before: Mapping[str, int], now: Mapping[str, int]
) -> dict[str, Tensor] | None:
    """Return a state dict with the rows of its class embedding in the order of other labels; None for other classes.

    Args:
        source: state dict of the earlier generator.
        before: its classes and their labels.
        now: classes of the next stage and their labels.
    """
    state = dict(source)
    if before.keys() != now.keys():
        return None
    if CLASS_EMBEDDING in state and before != now:
        table = state[CLASS_EMBEDDING]
        rows = [before[name] for name in sorted(now, key=now.__getitem__)]
        state[CLASS_EMBEDDING] = table[[*rows, *range(len(rows), len(table))]]  # the null class comes last
    return state


def check_equal_shapes(source: Mapping[str, Tensor], state: Mapping[str, Tensor], part: str) -> None:
    """Raise UserError unless a sub-module has the same tensors in both state dicts.

    Args:
        source: of the earlier stage.
        state: of the next one.
        part: name of the sub-module.
    """
    names = dict.fromkeys(name for tensors in (state, source) for name in tensors if name.startswith(f"{part}."))
    for name in names:
        if not fits(source, name, state, name):
            raise UserError(
                f"the {part}s differ: {name} is {shape(source, name)} in the weights to start from and "
                f"{shape(state, name)} in this model; give both stages the same {part}"
            )


def fits(source: Mapping[str, Tensor], origin: str, state: Mapping[str, Tensor], name: str) -> bool:
    """Return True if both tensors exist and have the same shape."""
    return origin in source and name in state and source[origin].shape == state[name].shape


def shape(state: Mapping[str, Tensor], name: str) -> str:
    """Return a tensor's shape, for messages."""
    return " × ".join(str(size) for size in state[name].shape) if name in state else "missing"


def _folded(names: tuple[str, ...]) -> str:
    counts: dict[str, int] = {}
    for name in names:
        pattern = ".".join("*" if part.isdigit() and ".blocks." in name else part for part in name.split("."))
        counts[pattern] = counts.get(pattern, 0) + 1
    return ", ".join(f"{pattern} ({count})" if "*" in pattern else pattern for pattern, count in counts.items())
