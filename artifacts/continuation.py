"""Start of a tokenizer's run from the weights of another one."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from polytoken.errors import UserError
from polytoken.handover import fits, shape
from polytoken.loading import RELEASED, Checkpoint
from polytoken.tokenizers import Tokenizer


@torch.no_grad()
def continue_from(init_from: str, tokenizer: Tokenizer, objective: nn.Module) -> dict[str, Any]:
    """Copy the weights of a tokenizer's run into a new one, and return their path, digest, step and release, if any.

    Args:
        init_from: run or checkpoint.
        tokenizer: takes all its weights, averaged where the run kept averages.
        objective: its discriminator and each of its terms take theirs if all names and shapes are equal.

    Raises:
        MissingFileError: if there is no such run.
        UserError: if it is not a tokenizer's, or its weights do not fit or are not finite. Nothing is changed then.
    """
    checkpoint = Checkpoint.open(init_from)
    source, state = checkpoint.weights("tokenizer"), tokenizer.state_dict()
    for name in dict.fromkeys((*state, *source)):
        if not fits(source, name, state, name):
            raise UserError(
                f"init_from is {init_from}, whose tokenizer differs from this one: {name} is {shape(source, name)} "
                f"there and {shape(state, name)} here; give both the same model.tokenizer"
            )
        if not bool(source[name].isfinite().all()):
            raise UserError(f"init_from is {init_from}, whose {name} is not finite: name an earlier checkpoint")
    tokenizer.load_state_dict(source)
    own, others = objective.state_dict(), checkpoint.weights("objective")
    parts: dict[str, list[str]] = {}  # adversarial.discriminator, terms.<name>, …
    for name in own:
        parts.setdefault(".".join(name.split(".")[:2]), []).append(name)
    carried = [part for part, names in parts.items() if all(_may_carry(others, own, name) for name in names)]
    for name in (name for part in carried for name in parts[part]):
        own[name].copy_(others[name])
    fresh = [part for part in parts if part not in carried]
    rank_zero_info(
        f"weights of {checkpoint.path}, step {checkpoint.step}{', averaged' if checkpoint.averaged else ''}; carried "
        f"with them: {', '.join(carried) or 'nothing'}; from scratch: {', '.join(fresh) or 'nothing'}"
    )
    origin = {"path": str(checkpoint.path), "sha256": checkpoint.sha256, "step": checkpoint.step}
    return origin if checkpoint.released is None else {**origin, RELEASED: asdict(checkpoint.released)}


def _may_carry(source: dict[str, Tensor], state: dict[str, Tensor], name: str) -> bool:
    return fits(source, name, state, name) and bool(source[name].isfinite().all())
