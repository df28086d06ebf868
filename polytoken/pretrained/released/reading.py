"""Reading of released checkpoint files, without running code from them."""

from __future__ import annotations

import argparse
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polytoken.errors import MissingFileError, UserError
from polytoken.integrity import DAMAGED, damage_of
from polytoken.pretrained.released.layout import State
from polytoken.weights import load_state, why_unreadable

# places of the weights in a training checkpoint, best first: averages over the training, then the last weights
PLACES: tuple[tuple[str, ...], ...] = (
    ("ema",),
    ("ema_state_dict",),
    ("model",),
    ("module",),
    ("state_dict", "gen_model"),
    ("state_dict",),
    (),
)
TORCH = (b"PK", b"\x80")  # first bytes of a zip archive, and of the pickles before torch 1.6
WRAPPERS = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile


def read_released(path: Path, remedy: str, places: Sequence[tuple[str, ...]] = PLACES) -> tuple[State, str]:
    """Read the weights in a released file.

    Args:
        path: a torch file or a ``.safetensors`` file.
        remedy: advice for a missing or damaged file.
        places: keys that lead to weights in a training checkpoint; the first place that holds some is taken.

    Returns:
        The weights by name, without the prefixes of wrappers, and the place they were found at.

    Raises:
        MissingFileError: if there is no file.
        UserError: if it is damaged, would run code, or holds no weights.
    """
    if not path.is_file():
        raise MissingFileError(f"there is no file {path}: {remedy}")
    content = load_state(path, remedy)[0] if path.suffix == ".safetensors" else _unpickle(path, remedy)
    for place in places:
        state = _state_at(content, place)
        if state:
            if odd := [name for name, tensor in state.items() if not _is_plain(tensor)]:
                raise UserError(f"{path} holds {odd[0]} as a sparse, quantized or meta tensor: {remedy}")
            return {_unwrapped(name): tensor for name, tensor in state.items()}, ".".join(place) or "the file itself"
    raise UserError(f"{path} holds no weights at any of {', '.join('.'.join(place) for place in places if place)}")


def _unpickle(path: Path, remedy: str) -> Any:
    with path.open("rb") as file:
        if not file.read(2).startswith(TORCH):
            raise UserError(f"{path} is no torch file, and a safetensors file ends in .safetensors: {remedy}")
    if (damage := damage_of(path)) is not None:
        raise UserError(f"{path} is not a readable checkpoint ({damage}): {remedy}")
    try:
        # training scripts store their command line, which is plain data
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except DAMAGED as error:
        raise UserError(f"{path} is not a readable checkpoint ({why_unreadable(error)}): {remedy}") from error


def _state_at(content: Any, place: tuple[str, ...]) -> Mapping[str, Tensor]:
    """Return the tensors at a place; empty if it is no mapping of names to tensors."""
    for key in place:
        content = content.get(key) if isinstance(content, Mapping) else None
    if not isinstance(content, Mapping) or not all(isinstance(name, str) for name in content):
        return {}
    return content if content and all(isinstance(value, Tensor) for value in content.values()) else {}


def _is_plain(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_meta


def _unwrapped(name: str) -> str:
    for wrapper in WRAPPERS:
        while name.startswith(wrapper):
            name = name.removeprefix(wrapper)
        name = name.replace(f".{wrapper}", ".")
    return name
