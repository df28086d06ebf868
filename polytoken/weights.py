"""Reading and writing of weights: safetensors, or torch files of tensors and plain values only."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from polytoken.errors import MissingFileError, UserError
from polytoken.files import replacing


def load_state(path: str | Path, remedy: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of a ``.safetensors`` file, or of a torch file that holds a plain state dict.

    Args:
        path: the file.
        remedy: advice for a missing file, e.g. "run `make teacher`".

    Raises:
        MissingFileError: if it is missing, naming the remedy.
        UserError: if it is cut short, corrupt, or a pickle that would run code.
    """
    path = _existing(path, remedy)
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                metadata = _metadata(file.metadata())
                return {key: file.get_tensor(key) for key in file.keys()}, metadata
        return torch.load(path, map_location="cpu", weights_only=True), {}
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise UserError(f"{path} is not a readable weights file ({why_unreadable(error)}): {remedy}") from error


def read_metadata(path: str | Path, remedy: str) -> dict[str, Any]:
    """Metadata of a ``.safetensors`` file, without its tensors; raises as :func:`load_state` does."""
    path = _existing(path, remedy)
    try:
        with safe_open(path, framework="pt") as file:
            return _metadata(file.metadata())
    except (SafetensorError, OSError) as error:
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
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise UserError(f"{path} is not a readable weights file ({why_unreadable(error)}): {remedy}") from error


def why_unreadable(error: Exception) -> str:
    """Short reason of a reader's error; torch's own text advises ``weights_only=False``."""
    text = str(error)
    if not isinstance(error, pickle.UnpicklingError):
        return (text.splitlines() or [type(error).__name__])[0][:200]
    called = re.search(r"GLOBAL (\S+)|global '(\S+)'", text)
    what = f": it names {called[1] or called[2]}, and" if called else ":"
    return f"it holds more than tensors and plain data{what} to read it could run code"


def _metadata(header: dict[str, str] | None) -> dict[str, Any]:
    """Decode a header: ours hold JSON; others hold plain words, such as ``format: pt``, which stay as they are."""
    values: dict[str, Any] = {}
    for key, value in (header or {}).items():
        try:
            values[key] = json.loads(value)
        except (json.JSONDecodeError, RecursionError):
            values[key] = value
    return values


def save_state(path: str | Path, module: nn.Module, metadata: dict[str, Any]) -> None:
    """Write a module's weights as safetensors, atomically; metadata values become JSON."""
    state = {key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}
    with replacing(path) as temporary:
        save_file(state, temporary, {key: json.dumps(value) for key, value in metadata.items()})


def _existing(path: str | Path, remedy: str) -> Path:
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"no weights at {path}: {remedy}")
    return path
