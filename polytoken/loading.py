"""Networks rebuilt from the runs that trained them: what a checkpoint says the model is, and its weights."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, TypeVar

import torch
from jsonargparse import ArgumentError, ArgumentParser
from torch import Tensor, nn

from polytoken.errors import MissingFileError, UserError
from polytoken.generators.base import Generator
from polytoken.specs import TokenSpec
from polytoken.tokenizers import Tokenizer
from polytoken.weights import why_unreadable

WHOLE = "whole.ckpt"  # what commands.consolidate makes of a sharded checkpoint
SHARDED = "meta.pt"  # Lightning writes it into a sharded checkpoint, which is a directory
MODEL_CONFIG = "model_config"  # the key under which callbacks.checkpoint.run_record keeps the model section
KEY = "generator"
Network = TypeVar("Network", bound=nn.Module)


def load_tokenizer(run: str | Path) -> Tokenizer:
    """The tokenizer of a run, in eval mode and frozen, on the CPU; its averaged weights where the run kept some.

    Args:
        run: the run's directory, e.g. ``runs/digits/tokenizer/fq_dual``, or a checkpoint file.

    Raises:
        FileNotFoundError: if there is no checkpoint.
        ValueError: if the checkpoint is not of a tokenizer's run.
    """
    checkpoint, path = read_checkpoint(run)
    section = _init_args(checkpoint, path).get("tokenizer")
    if not isinstance(section, dict):
        raise UserError(f"{path} is not the checkpoint of a tokenizer: its model section has no tokenizer")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Tokenizer, "tokenizer")
    tokenizer = _build(parser, {"tokenizer": section}, path).tokenizer
    return _with_weights(tokenizer, "tokenizer", checkpoint, path)


def load_generator(run: str | Path) -> Generator:
    """The generator of a run, in eval mode and frozen, on the CPU; its averaged weights where the run kept some.

    Args:
        run: the run's directory, e.g. ``runs/digits/stage2/fq_dual``, or a checkpoint file.

    Raises:
        FileNotFoundError: if there is no checkpoint.
        ValueError: if the checkpoint is not of a generator's run.
    """
    checkpoint, path = read_checkpoint(run)
    record = record_in(checkpoint, path)
    section = _init_args(checkpoint, path).get("generator")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Generator, "generator")
    generator = _build(parser, {"generator": section}, path).generator
    generator.connect(TokenSpec.from_json(record["spec"]), record["num_classes"])
    return _with_weights(generator, "generator", checkpoint, path)


def read_checkpoint(run: str | Path) -> tuple[dict[str, Any], Path]:
    """The last checkpoint of a run (or the one named), its tensors memory-mapped, and its path.

    Of a sharded one it is the file that ``make consolidate`` has made of it.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is sharded and no such file is there, or unreadable.
    """
    path = Path(run)
    if path.is_dir() and not (path / SHARDED).exists():
        path = path / "checkpoints" / "last.ckpt"
    if not path.exists():
        raise MissingFileError(f"there is no checkpoint {path}: train this run first, or name the run that you mean")
    if not path.is_dir():
        return read_metadata(path), path
    file = path.with_name(WHOLE)
    checkpoint = read_metadata(file) if file.exists() else {}
    if checkpoint.get("global_step") != read_metadata(path)["global_step"]:
        raise UserError(
            f"{path} is a sharded checkpoint, and {file} is {'of another step' if checkpoint else 'not there'}: make "
            f"one file of it by `python -m commands.consolidate {path}` (make consolidate RUN={path.parent.parent})"
        )
    return checkpoint, file


def read_metadata(path: Path) -> dict[str, Any]:
    """What a checkpoint file holds, tensors memory-mapped; of a sharded one all but weights and optimizers.

    Raises:
        ValueError: if it is unreadable.
    """
    try:
        file = path / SHARDED if path.is_dir() else path
        return torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise UserError(f"{path} is not a readable checkpoint ({why_unreadable(error)})") from error


def _init_args(checkpoint: dict[str, Any], path: Path) -> dict[str, Any]:
    model = checkpoint.get(MODEL_CONFIG)
    if not isinstance(model, dict):
        raise UserError(f"{path} does not say what its model is: only runs of cli.py can be loaded")
    return model.get("init_args", {})


def _build(parser: ArgumentParser, section: dict[str, Any], path: Path) -> Any:
    try:
        return parser.instantiate_classes(parser.parse_object(section))
    except ArgumentError as error:
        raise UserError(
            f"the model section recorded in {path} does not fit this version of the code: {error}"
        ) from error


def _with_weights(network: Network, name: str, checkpoint: dict[str, Any], path: Path) -> Network:
    """Load one sub-module of the LightningModule; averages (callbacks.EMA) go before what training ended with."""
    prefix = f"{name}."
    average: dict[str, Tensor] = checkpoint.get("callbacks", {}).get("EMA", {}).get("average", {})
    state = {
        key.removeprefix(prefix): average.get(key, value)
        for key, value in checkpoint["state_dict"].items()
        if key.startswith(prefix)
    }
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"the weights in {path} do not fit the {name} that it describes: {error}") from error
    return network.eval().requires_grad_(False)


def record_in(checkpoint: dict[str, Any], path: Path) -> dict[str, Any]:
    """What a checkpoint says of its generator.

    Raises:
        ValueError: if it is not a generator's.
    """
    if KEY not in checkpoint:
        raise UserError(f"{path} is not the checkpoint of a generator: it does not say which codes it writes")
    return checkpoint[KEY]


def sub_codes(record: dict[str, Any]) -> list[int]:
    """Which of the tokenizer's sub-codes a generator writes, in its order."""
    chosen = record["sub_codes"]
    return list(range(TokenSpec.from_json(record["full_spec"]).num_sub_codes)) if chosen is None else list(chosen)
