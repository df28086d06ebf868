"""Fingerprint of a tokenizer, which ties codes to the weights that wrote them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import Any

from polytoken.errors import UserError
from polytoken.frozen import hash_weights
from polytoken.tokenizers.base import Tokenizer

# keys of a checkpoint: the frozen networks of its tokenizer and of its objective, which hold no weights in it
FROZEN = "frozen"
OBJECTIVE_FROZEN = "objective_frozen"


def fingerprint(tokenizer: Tokenizer) -> str:
    """SHA-256 in hex over the spec, the frozen networks, and name, type, shape and bytes of the state dict's tensors.

    Device and memory layout do not matter; a single different bit of a weight does. Settings that neither the spec nor
    a tensor holds, such as FSQ's ``alpha`` or the blend of scales, are not covered: the configuration of a run or of an
    exported folder keeps them.
    """
    frozen = dict(sorted(tokenizer.frozen_identities().items()))
    spec = tokenizer.spec and asdict(tokenizer.spec)
    digest = hashlib.sha256(json.dumps([spec, frozen]).encode())
    hash_weights(digest, tokenizer)
    return digest.hexdigest()


def check_frozen(recorded: Any, present: dict[str, str], where: str) -> None:
    """Compare the frozen networks that a checkpoint records with those that its tokenizer or objective has now.

    Args:
        recorded: the value under ``FROZEN`` or ``OBJECTIVE_FROZEN``; None for a checkpoint without one, which is not
            compared.
        present: ``frozen_identities()`` of the tokenizer or the objective.
        where: the checkpoint, for the message.

    Raises:
        UserError: they differ, so that codes and decoded features, or the losses, would mean something else.
    """
    if recorded is None or recorded == present:
        return
    if not isinstance(recorded, dict):
        raise UserError(f"{where} is broken: its record of frozen networks is not a mapping")
    name = next(key for key in {**recorded, **present} if recorded.get(key) != present.get(key))
    raise UserError(
        f"{where} was trained on {name} = {_short(recorded.get(name))}, and here it is {_short(present.get(name))}: "
        "restore the weights and settings of that model, or train the tokenizer again in a new run (run.stage)"
    )


def _short(identity: Any) -> str:
    """An identity with the first digits of its digest."""
    return " ".join(word[:12] if len(word) == 64 else word for word in str(identity).split())
