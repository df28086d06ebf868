"""Stage to stage: the weights a generator takes over from the one trained before it (SSQ section 4.2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from polytoken.errors import UserError
from polytoken.generators.autoregressive import AutoregressiveGenerator


@dataclass(frozen=True)
class Handover:
    """Names of tensors, sorted.

    Args:
        carried: of the target, now holding weights of the source.
        fresh: of the target, left as they were initialised or set so that the rest of the handover holds.
        left_behind: of the source, used nowhere.
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
    source: Mapping[str, Tensor], target: AutoregressiveGenerator, sub_code: int | Literal["all"] | None = None
) -> Handover:
    """Put the weights of an earlier stage into a generator, and say which.

    The trunk, the class embedding and the final norm carry over by name. With one sub-code, its embedding table carries
    over too, and its output layer where the head has one of that shape. The other sub-codes then
    start without influence on the trunk's input (their block of the aggregation is zero; when embeddings are summed,
    their tables are), so that the trunk's hidden states are the source's until training moves them. With all sub-codes,
    every tensor carries over whose name and shape are the same.

    Args:
        source: state dict of an :class:`AutoregressiveGenerator`.
        target: the generator of the next stage, changed in place.
        sub_code: the one sub-code of the same tokenizer that the source was trained on; ``all`` if it was trained on
            the same sub-codes in the same order; None if it was trained on other codes.

    Raises:
        ValueError: if the trunks differ, naming the first tensor that does, or the sub_code does not fit.
    """
    state = target.state_dict()
    _check_trunk(source, state)
    pairs = {name: name for name in state if name.startswith("trunk.")}
    pairs |= {name: name for name in ("class_embedding.weight", "head.norm.weight") if _fits(source, name, state, name)}
    if sub_code == "all":
        pairs = {name: name for name in state if _fits(source, name, state, name)}
    elif isinstance(sub_code, int):
        _check_sub_code(source, target, state, sub_code)
        pairs[f"embeddings.{sub_code}.weight"] = "embeddings.0.weight"
        if _fits(source, "head.outputs.0.weight", state, f"head.outputs.{sub_code}.weight"):
            pairs[f"head.outputs.{sub_code}.weight"] = "head.outputs.0.weight"
        _silence_others(target, sub_code)
    for name, origin in pairs.items():
        state[name].copy_(source[origin])
    return Handover(
        carried=tuple(sorted(pairs)),
        fresh=tuple(sorted(set(state) - set(pairs))),
        left_behind=tuple(sorted(set(source) - set(pairs.values()))),
    )


def _check_trunk(source: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    wanted = [name for name in state if name.startswith("trunk.")]
    for name in [*wanted, *(name for name in source if name.startswith("trunk.") and name not in state)]:
        if not _fits(source, name, state, name):
            raise UserError(
                f"the trunks differ: {name} is {_shape(source, name)} in the weights to start from and "
                f"{_shape(state, name)} in this model; give both stages the same trunk"
            )


def _check_sub_code(
    source: Mapping[str, Tensor], target: AutoregressiveGenerator, state: Mapping[str, Tensor], sub_code: int
) -> None:
    tables = [name for name in source if name.startswith("embeddings.")]
    if len(tables) != 1:
        raise UserError(
            f"sub_code is {sub_code}, but the weights to start from read {len(tables)} sub-codes: leave it out"
        )
    if not 0 <= sub_code < len(target.embeddings):
        raise UserError(f"sub_code is {sub_code}, and this model has sub-codes 0 to {len(target.embeddings) - 1}")
    table = f"embeddings.{sub_code}.weight"
    if not _fits(source, "embeddings.0.weight", state, table):
        raise UserError(
            f"the earlier stage's embedding table is {_shape(source, 'embeddings.0.weight')} and that of sub-code "
            f"{sub_code} is {_shape(state, table)}: the codes differ, leave sub_code out or choose the right one"
        )


def _silence_others(target: AutoregressiveGenerator, sub_code: int) -> None:
    if isinstance(target.aggregation, nn.Linear):
        weight, bias = target.aggregation.weight, target.aggregation.bias
        dim = weight.shape[0]
        weight.zero_()
        bias.zero_()
        weight[:, sub_code * dim : (sub_code + 1) * dim].fill_diagonal_(1.0)
    else:
        for i, table in enumerate(target.embeddings):
            if i != sub_code:
                table.weight.zero_()  # type: ignore[operator]


def _fits(source: Mapping[str, Tensor], name: str, state: Mapping[str, Tensor], own: str) -> bool:
    return name in source and own in state and source[name].shape == state[own].shape


def _shape(state: Mapping[str, Tensor], name: str) -> str:
    return " × ".join(str(size) for size in state[name].shape) if name in state else "missing"


def _folded(names: tuple[str, ...]) -> str:
    counts: dict[str, int] = {}
    for name in names:
        pattern = ".".join("*" if part.isdigit() and ".blocks." in name else part for part in name.split("."))
        counts[pattern] = counts.get(pattern, 0) + 1
    return ", ".join(f"{pattern} ({count})" if "*" in pattern else pattern for pattern, count in counts.items())
