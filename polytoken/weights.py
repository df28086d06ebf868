"""Reading and writing of weights: safetensors, or torch files of tensors and plain values only."""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from polytoken.errors import MissingFileError, UserError, first_line
from polytoken.files import replacing
from polytoken.integrity import DAMAGED, SHA256, damage_of, tensors_sha256
from polytoken.precision import float32_weights

MAKE_TEACHER = "run `make teacher PRESET=…`, which trains it"
Network = TypeVar("Network", bound=nn.Module)


def load_state(path: str | Path, remedy: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of a ``.safetensors`` file, or of a torch file that holds a plain state dict.

    Args:
        path: the file.
        remedy: advice for a missing file, e.g. "run `make teacher`".

    Raises:
        MissingFileError: if it is missing, naming the remedy.
        UserError: if it is cut short, corrupt, changed since it was written, or a pickle that would run code.
    """
    path = _existing(path, remedy)
    _check(path, remedy)
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                metadata = _metadata(file.metadata())
                return {key: file.get_tensor(key) for key in file.keys()}, metadata
        return torch.load(path, map_location="cpu", weights_only=True), {}
    except DAMAGED as error:
        raise UserError(f"{path} is not a readable weights file ({why_unreadable(error)}): {remedy}") from error


def rebuild(build: Callable[[], Network], state: Mapping[str, Tensor], path: str | Path, remedy: str) -> Network:
    """Return the frozen network that a file describes: eval mode, no gradients.

    Args:
        build: makes the network by the header.
        state: its weights.
        path: the file, for the message.
        remedy: advice, as for :func:`load_state`.

    Raises:
        UserError: if the weights are those of another network.
    """
    # discarded initial weights must not shift the caller's stream
    with torch.random.fork_rng(devices=[]), float32_weights():
        network = build()
        try:
            network.load_state_dict(state)
        except RuntimeError as error:
            raise UserError(f"{path} does not hold the network its header describes: {remedy}") from error
    return network.eval().requires_grad_(False)


def read_metadata(path: str | Path, remedy: str) -> dict[str, Any]:
    """Metadata of a ``.safetensors`` file, without its tensors; raises as :func:`load_state` does."""
    path = _existing(path, remedy)
    _check(path, remedy)
    try:
        with safe_open(path, framework="pt") as file:
            return _metadata(file.metadata())
    except DAMAGED as error:
        raise UserError(f"{path} is not a readable weights file ({why_unreadable(error)}): {remedy}") from error


def read_shapes(path: str | Path, remedy: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of a file, without their values; raises as :func:`load_state` does."""
    path = _existing(path, remedy)
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}
        state = torch.load(path, map_location="meta", weights_only=True)
        entries = state.items() if isinstance(state, dict) else ()
        return {key: tuple(tensor.shape) for key, tensor in entries if isinstance(tensor, Tensor)}
    except DAMAGED as error:
        raise UserError(f"{path} is not a readable weights file ({why_unreadable(error)}): {remedy}") from error


def why_unreadable(error: Exception) -> str:
    """Short reason of a reader's error; torch's own text advises ``weights_only=False``."""
    if not isinstance(error, pickle.UnpicklingError):
        return first_line(error)
    called = re.search(r"GLOBAL (\S+)|global '(\S+)'", str(error))
    what = f": it names {called[1] or called[2]}, and" if called else ":"
    return f"it holds more than tensors and plain data{what} to read it could run code"


def _metadata(header: dict[str, str] | None) -> dict[str, Any]:
    """Decode a header: ours hold JSON; others hold plain words, such as ``format: pt``, which stay as they are."""
    values: dict[str, Any] = {}
    for key, value in (header or {}).items():
        if key == SHA256:
            continue
        try:
            values[key] = json.loads(value)
        except (json.JSONDecodeError, RecursionError):
            values[key] = value
    return values


def save_state(path: str | Path, module: nn.Module, metadata: dict[str, Any]) -> None:
    """Write a module's weights as safetensors; see :func:`save_tensors`."""
    save_tensors(path, module.state_dict(), metadata)


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write tensors as safetensors, atomically, with a digest; metadata values become JSON.

    Equal content gives equal bytes.
    """
    state = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    header = {key: json.dumps(value) for key, value in metadata.items()}
    with replacing(path) as temporary:
        save_file(state, temporary, {**header, SHA256: tensors_sha256(state, header)})
        _sort_metadata(temporary)
        mask = os.umask(0o077)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)  # safetensors lets only the owner read


def _sort_metadata(path: Path) -> None:
    """Sort the metadata, which safetensors writes in a random order, so that equal weights are equal files."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= size, "the same text in another order"
        file.seek(8)
        file.write(text.ljust(size))


def _check(path: Path, remedy: str) -> None:
    if (damage := damage_of(path)) is not None:
        raise UserError(f"{path} is not a readable weights file ({damage}): {remedy}")


def _existing(path: str | Path, remedy: str) -> Path:
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"no weights at {path}: {remedy}")
    return path
