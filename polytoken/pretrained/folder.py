"""Folder format of trained models.

A tokenizer is a folder of ``config.json`` and ``model.safetensors``. A pipeline has such a folder for each of its two
networks, ``generator/`` and ``tokenizer/``, and a ``config.json`` that says so. Files of other names are not read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict

import msgspec
import torch

from polytoken import records
from polytoken.errors import MissingFileError, UserError
from polytoken.files import file_sha256
from polytoken.fingerprint import FROZEN, fingerprint
from polytoken.generators.record import GeneratorRecord, run_name
from polytoken.layout import CHECKPOINTS
from polytoken.loading import (
    CONFIG,
    GENERATOR,
    TOKENIZER,
    Checkpoint,
    check_tokenizer,
    present_run,
)
from polytoken.pipeline import GenerationPipeline
from polytoken.specs import TokenSpec
from polytoken.tokenizers import Tokenizer
from polytoken.weights import load_state, save_tensors

WEIGHTS = "model.safetensors"
FORMAT = 1
EXPORT = "`python -m commands.export RUN --to FOLDER`"
REMEDY = "copy or download the whole folder again, or export the run again"


class Header(TypedDict, total=False):
    """Field of ``config.json`` that every version of the format has."""

    polytoken_format: int


class NetworkConfig(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind"):
    """Common part of the ``config.json`` of a network.

    Attributes:
        polytoken_format: version of the format.
        model: class path and arguments, as the checkpoint of the run recorded them.
        weights_sha256: of ``model.safetensors``.
        step: optimizer steps of the training.
        averaged: True if the weights are averages over the training.
    """

    polytoken_format: int = FORMAT
    model: dict[str, Any]
    weights_sha256: str
    step: int
    averaged: bool


class TokenizerConfig(NetworkConfig, frozen=True, kw_only=True, tag=TOKENIZER):
    """``config.json`` of a tokenizer.

    Attributes:
        fingerprint: of the tokenizer.
        spec: shape of its codes; None for a continuous bottleneck.
        frozen: identities of its frozen networks, whose weights are not in the folder.
    """

    fingerprint: str
    spec: TokenSpec | None
    frozen: dict[str, str]


class GeneratorConfig(NetworkConfig, frozen=True, kw_only=True, tag=GENERATOR):
    """``config.json`` of the generator of a pipeline.

    Attributes:
        record: what it was trained on; runs have names of two parts instead of paths.
    """

    record: GeneratorRecord


class PipelineConfig(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="pipeline"):
    """``config.json`` of a pipeline."""

    polytoken_format: int = FORMAT


def load_folder(folder: str | Path, trust: Sequence[str] = ()) -> Tokenizer | GenerationPipeline:
    """Load an exported model; see :func:`polytoken.from_pretrained`.

    Args:
        folder: as ``python -m commands.export`` wrote it.
        trust: packages besides polytoken whose classes the folder may name.

    Raises:
        MissingFileError: if the folder or one of its files does not exist.
        UserError: if it is no exported model, of a newer version, damaged, or made of two exports.
    """
    folder = Path(folder)
    config = _read(folder)
    if isinstance(config, TokenizerConfig):
        return _load_tokenizer(folder, config, trust)
    if isinstance(config, GeneratorConfig):
        raise UserError(
            f"{folder} is the generator of a pipeline, which draws no images without its tokenizer: name the folder "
            f"that holds both, {folder.parent}"
        )
    return _load_pipeline(folder, trust)


@torch.random.fork_rng(devices=[])
def save_pretrained(
    run: str | Path, folder: str | Path, tokenizer_run: str | Path | None = None, trust: Sequence[str] = ()
) -> None:
    """Write the model of a run: of a generator's run a pipeline, with its tokenizer.

    Existing files of the folder are replaced one by one. ``python -m commands.export`` writes all or none, and a model
    card.

    Args:
        run: the run's directory, or a checkpoint file.
        folder: made if it does not exist.
        tokenizer_run: present place of a generator's tokenizer; None looks where it was in training, and beside the
            run.
        trust: packages besides polytoken whose classes the checkpoints may name.

    Raises:
        MissingFileError: if there is no checkpoint.
        UserError: if the run is neither a tokenizer's nor a generator's, or was trained on another tokenizer.
    """
    folder = Path(folder)
    checkpoint = Checkpoint.open(run)
    if GENERATOR not in checkpoint.content:
        _save_tokenizer(folder, checkpoint, checkpoint.tokenizer(trust))
        return
    record = checkpoint.record
    place = Path(tokenizer_run or present_run(record.tokenizer_run, checkpoint.path))
    of_tokenizer = Checkpoint.open(place)
    tokenizer = of_tokenizer.tokenizer(trust)
    check_tokenizer(record, f"{checkpoint.path} writes", tokenizer, place)
    checkpoint.generator(trust, tokenizer)
    _save_tokenizer(folder / TOKENIZER, of_tokenizer, tokenizer)
    common = _save_weights(folder / GENERATOR, checkpoint, GENERATOR)
    records.write(folder / GENERATOR / CONFIG, GeneratorConfig(**common, record=_without_paths(record)))
    records.write(folder / CONFIG, PipelineConfig())


def _read(folder: Path) -> TokenizerConfig | GeneratorConfig | PipelineConfig:
    if not folder.is_dir():
        raise MissingFileError(
            f"there is no folder {folder}: name one that {EXPORT} wrote; a model of the hub is downloaded first, by "
            "huggingface_hub.snapshot_download"
        )
    file = folder / CONFIG
    if not file.exists():
        found = "is a run" if (folder / CHECKPOINTS).exists() else "holds no exported model"
        raise MissingFileError(f"{folder} {found}, and {CONFIG} does not exist: name a folder that {EXPORT} wrote")
    version = records.read(file, Header).get("polytoken_format")
    if version is None:
        raise UserError(f"{file} describes no model of polytoken: name a folder that {EXPORT} wrote")
    if version != FORMAT:
        advice = "update polytoken" if version > FORMAT else "export the run again"
        raise UserError(f"{file} has the format {version}, and this version of polytoken reads {FORMAT}: {advice}")
    return records.read(file, TokenizerConfig | GeneratorConfig | PipelineConfig)  # type: ignore[arg-type]


def _load_tokenizer(folder: Path, config: TokenizerConfig, trust: Sequence[str]) -> Tokenizer:
    tokenizer = _checkpoint(folder, config, TOKENIZER, {FROZEN: config.frozen}).tokenizer(trust)
    found = fingerprint(tokenizer)
    if found != config.fingerprint or tokenizer.spec != config.spec:
        raise UserError(
            f"{folder} was written from a tokenizer with the fingerprint {config.fingerprint[:12]} and {config.spec}, "
            f"and now it has {found[:12]} and {tokenizer.spec}: {REMEDY}"
        )
    return tokenizer


def _load_pipeline(folder: Path, trust: Sequence[str]) -> GenerationPipeline:
    configs = {name: _read(folder / name) for name in (TOKENIZER, GENERATOR)}
    of_tokenizer, config = configs[TOKENIZER], configs[GENERATOR]
    if not isinstance(of_tokenizer, TokenizerConfig) or not isinstance(config, GeneratorConfig):
        raise UserError(f"{folder} does not hold a tokenizer in {TOKENIZER}/ and a generator in {GENERATOR}/: {REMEDY}")
    tokenizer = _load_tokenizer(folder / TOKENIZER, of_tokenizer, trust)
    check_tokenizer(config.record, f"{folder / GENERATOR} writes", tokenizer, folder / TOKENIZER)
    checkpoint = _checkpoint(folder / GENERATOR, config, GENERATOR, {GENERATOR: config.record.to_plain()})
    place = str(folder / TOKENIZER)
    return GenerationPipeline.of(
        checkpoint, tokenizer, str(folder), place, trust, config.weights_sha256, config.averaged
    )


def _checkpoint(folder: Path, config: NetworkConfig, name: str, more: dict[str, Any]) -> Checkpoint:
    """The folder as the checkpoint of a run, whose reader rebuilds and checks networks.

    Raises:
        MissingFileError: if there are no weights.
        UserError: if they are damaged, or not those that the configuration names.
    """
    records.check_size(config.model, folder / CONFIG)
    state, _ = load_state(folder / WEIGHTS, REMEDY)
    digest = file_sha256(folder / WEIGHTS)
    if digest != config.weights_sha256:
        raise UserError(
            f"{folder / WEIGHTS} has the SHA-256 {digest[:12]}…, and {CONFIG} next to it names "
            f"{config.weights_sha256[:12]}…: the files are of two exports, so {REMEDY}"
        )
    return Checkpoint.of_network(folder, name, config.model, state, config.step, more)


def _save_tokenizer(folder: Path, checkpoint: Checkpoint, tokenizer: Tokenizer) -> None:
    config = TokenizerConfig(
        **_save_weights(folder, checkpoint, TOKENIZER),
        fingerprint=fingerprint(tokenizer),
        spec=tokenizer.spec,
        frozen=tokenizer.frozen_identities(),
    )
    records.write(folder / CONFIG, config)


def _save_weights(folder: Path, checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    """Write the weights of a network; returns the common part of its configuration."""
    save_tensors(folder / WEIGHTS, checkpoint.weights(name), {"format": "pt"})
    return {
        "model": checkpoint.model[name],
        "weights_sha256": file_sha256(folder / WEIGHTS),
        "step": checkpoint.step,
        "averaged": checkpoint.averaged,
    }


def _without_paths(record: GeneratorRecord) -> GeneratorRecord:
    """The record with names of runs in place of their paths on this machine."""
    lineage, start = record.lineage, record.lineage.init_from
    named = replace(
        lineage,
        tokenizer_run=run_name(lineage.tokenizer_run),
        store=run_name(lineage.store),
        init_from=start and replace(start, path=run_name(start.path)),
    )
    return replace(record, tokenizer_run=run_name(record.tokenizer_run), lineage=named)
