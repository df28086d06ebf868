"""Checkpoints of runs, and the networks rebuilt from them.

Keys of a checkpoint, and who writes them: ``state_dict``, ``global_step``, ``callbacks``, ``loops`` and
``optimizer_states`` by Lightning, ``callbacks.EMA`` by callbacks.EMA, ``model_config`` by callbacks.RunRecord,
``random_state`` by callbacks.RandomState, ``training_metrics`` by callbacks.MetricsFile, ``generator`` by
lightning_modules.GeneratorModule, ``frozen`` and ``init_from`` by lightning_modules.TokenizerModule, ``released`` by
polytoken.pretrained, and the name of a data module, such as ``TokenDataModule``, with the position in the training
stream, by that module.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from polytoken.building import build
from polytoken.codec import BlankCodec, FrozenCodec
from polytoken.errors import MissingFileError, UserError
from polytoken.files import file_sha256, real_path
from polytoken.fingerprint import FROZEN, check_frozen, fingerprint
from polytoken.generators.base import Generator
from polytoken.generators.record import GeneratorRecord
from polytoken.integrity import DAMAGED, damage_of_archive
from polytoken.layout import CHECKPOINTS, LAST, SHARDED, whole_of
from polytoken.licence import ReleasedAs
from polytoken.precision import float32_weights
from polytoken.records import check_size, decode
from polytoken.tokenizers import Tokenizer
from polytoken.weights import why_unreadable

STATE_DICT = "state_dict"
GLOBAL_STEP = "global_step"
CALLBACKS = "callbacks"
RANDOM_STATE = "random_state"
TRAINING_METRICS = "training_metrics"
EMA = "EMA"
AVERAGE = "average"
MODEL_CONFIG = "model_config"
TOKENIZER = "tokenizer"
GENERATOR = "generator"
INIT_FROM = "init_from"
RELEASED = "released"
CONFIG = "config.json"  # of an exported model (polytoken.pretrained); a run has config.yaml
REMEDY = "name another checkpoint of the run (previous.ckpt, step_….ckpt), or train it again"

Network = TypeVar("Network", bound=nn.Module)


@torch.random.fork_rng(devices=[])
def load_tokenizer(run: str | Path, trust: Sequence[str] = ()) -> Tokenizer:
    """Load the tokenizer of a run: frozen, in eval mode, on the CPU, with averaged weights where the run kept some.

    The caller's default dtype and inference mode change nothing, and its random stream stays where it is.

    Args:
        run: the run's directory, e.g. ``runs/digits/tokenizer/fq_dual``, or a checkpoint file.
        trust: packages besides polytoken whose classes the checkpoint may name.

    Raises:
        MissingFileError: if there is no checkpoint.
        UserError: if the checkpoint is not of a tokenizer's run.
    """
    return Checkpoint.open(run).tokenizer(trust)


@torch.random.fork_rng(devices=[])
def load_generator(run: str | Path, trust: Sequence[str] = ()) -> Generator:
    """Load the generator of a run, as :func:`load_tokenizer` does a tokenizer.

    Args:
        run: the run's directory, e.g. ``runs/digits/stage2/fq_dual``, or a checkpoint file.
        trust: packages besides polytoken whose classes the checkpoint may name.

    Raises:
        MissingFileError: if there is no checkpoint.
        UserError: if the checkpoint is not of a generator's run.
    """
    return Checkpoint.open(run).generator(trust)


def present_run(recorded: str, beside: str | Path) -> Path:
    """Return the present place of a run, which may have moved together with what recorded it.

    The recorded path, or the end of it, is looked for below each directory above ``beside``, so that neither a moved
    tree nor another working directory loses it. The caller compares fingerprints.

    Args:
        recorded: path of the run, as it was recorded.
        beside: run, checkpoint or token store that recorded it.

    Raises:
        MissingFileError: if there is no checkpoint in any of these places.
    """
    path = Path(recorded)
    if path.is_absolute() and checkpoint_path(path).exists():
        return path
    parts = path.parts[1:] if path.is_absolute() else path.parts
    for end in (Path(*parts[start:]) for start in range(max(1, len(parts) - 1))):
        for above in real_path(beside).parents:
            if checkpoint_path(above / end).exists():
                return path if real_path(above / end) == real_path(path) else above / end
    if checkpoint_path(path).exists():
        return path
    raise MissingFileError(
        f"there is no checkpoint {path}, the recorded tokenizer of {beside}, nor one below a directory above it: name "
        "the present place of the tokenizer's run (tokenizer_run), move it there, or train this run first"
    )


def load_tokenizer_of(record: GeneratorRecord, owner: str, run: str | Path, trust: Sequence[str] = ()) -> Tokenizer:
    """Load the tokenizer of a generator's tokens, as :func:`load_tokenizer` does.

    Args:
        record: of the generator.
        owner: what has these tokens, for the message: "<checkpoint> writes".
        run: present place of the tokenizer (:func:`present_run`).
        trust: packages besides polytoken whose classes the checkpoint may name.

    Raises:
        MissingFileError: if there is no checkpoint.
        UserError: if the tokenizer is another one.
    """
    tokenizer = load_tokenizer(run, trust)
    check_tokenizer(record, owner, tokenizer, run)
    return tokenizer


def check_tokenizer(record: GeneratorRecord, owner: str, tokenizer: Tokenizer, place: str | Path) -> None:
    """Raise UserError unless a tokenizer is that of a generator; arguments as for :func:`load_tokenizer_of`."""
    found = fingerprint(tokenizer)
    if found != record.tokenizer_fingerprint:
        raise UserError(
            f"{owner} tokens of a tokenizer with the fingerprint {record.tokenizer_fingerprint[:12]}, and the one in "
            f"{place} has {found[:12]}: name the run of its own tokenizer as tokenizer_run, or train the generator "
            "again on the tokens of this one"
        )
    if record.full_spec != tokenizer.spec:
        raise UserError(
            f"{owner} tokens of the shape {record.full_spec}, and its tokenizer in {place} has {tokenizer.spec}: the "
            "token store is not as that tokenizer wrote it; write it again (make tokens), and train the generator on it"
        )


def load_codec(record: GeneratorRecord, owner: str, beside: str | Path, trust: Sequence[str]) -> FrozenCodec:
    """Load the codec of a generator's tokenizer; arguments as for :func:`load_tokenizer_of` and :func:`present_run`."""
    place = present_run(record.tokenizer_run, beside)
    codec = FrozenCodec(lambda: load_tokenizer_of(record, owner, place, trust), record.sub_codes)
    codec.prepare(torch.device("cpu"))
    return codec


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of a run.

    Networks are rebuilt with initial weights from the caller's random stream, which a run draws on after a handover:
    :func:`load_tokenizer` and :func:`load_generator` leave the stream where it is.

    Args:
        path: the file.
        content: all that it holds; tensors are memory-mapped.
    """

    path: Path
    content: Mapping[str, Any]

    @classmethod
    def open(cls, run: str | Path) -> Checkpoint:
        """Open the last checkpoint of a run's directory, or the file itself.

        For a sharded checkpoint this is the file that ``make consolidate`` has made of it.

        Raises:
            MissingFileError: if it does not exist.
            UserError: if it is unreadable, or sharded and not consolidated.
        """
        path = checkpoint_path(run)
        if not path.exists():
            remedy = "train this run first, or name another run"
            if (Path(run) / CONFIG).exists():
                remedy = f"{run} is an exported model, so load it by polytoken.from_pretrained, or name its run"
            raise MissingFileError(f"there is no checkpoint {path}: {remedy}")
        if not path.is_dir():
            return cls(path, read_metadata(path))
        file = whole_of(path)
        content = read_metadata(file) if file.exists() else {}
        if content.get(GLOBAL_STEP) != read_metadata(path).get(GLOBAL_STEP):
            of_run = f" (make consolidate RUN={path.parent.parent})" if path.name == LAST else ""
            raise UserError(
                f"{path} is a sharded checkpoint, and {file} is {'of another step' if content else 'missing'}: make "
                f"one file of it by `python -m commands.consolidate {path}`{of_run}"
            )
        return cls(file, content)

    @classmethod
    def of_network(
        cls, path: Path, name: str, section: Any, weights: Mapping[str, Tensor], step: int, more: Mapping[str, Any]
    ) -> Checkpoint:
        """Return a network that is no run's as the checkpoint of a run, whose reader rebuilds and checks it.

        Args:
            path: where it was read.
            name: ``TOKENIZER`` or ``GENERATOR``.
            section: class path and arguments.
            weights: its state dict.
            step: optimizer steps of its training.
            more: further content.
        """
        state = {f"{name}.{key}": tensor for key, tensor in weights.items()}
        return cls(path, {STATE_DICT: state, MODEL_CONFIG: {"init_args": {name: section}}, GLOBAL_STEP: step, **more})

    @cached_property
    def sha256(self) -> str:
        """Digest of the file."""
        return file_sha256(self.path)

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        step = self.content.get(GLOBAL_STEP)
        if not isinstance(step, int):
            raise UserError(f"{self.path} is broken: {GLOBAL_STEP} is {step!r}")
        return step

    @property
    def averaged(self) -> bool:
        """True if :meth:`weights` are averages (callbacks.EMA)."""
        return bool(self._average)

    @property
    def identity(self) -> dict[str, Any]:
        """File, digest, step and averaging of the weights, for a record of what was measured."""
        return {"path": str(self.path), "sha256": self.sha256, "step": self.step, "averaged": self.averaged}

    @property
    def model(self) -> dict[str, Any]:
        """Arguments of the LightningModule, as the configuration gave them."""
        section = self.content.get(MODEL_CONFIG)
        arguments = section.get("init_args", {}) if isinstance(section, dict) else None
        if not isinstance(arguments, dict):
            raise UserError(f"{self.path} does not say what its model is: only runs of cli.py can be loaded")
        return arguments

    @property
    def record(self) -> GeneratorRecord:
        """The record of a generator's checkpoint."""
        return record_in(self.content, self.path)

    @property
    def released(self) -> ReleasedAs | None:
        """Origin of released weights: these, or those that training began with; UserError if its record is broken."""
        imported = RELEASED in self.content
        if GENERATOR in self.content and not imported:
            start = self.record.lineage.init_from
            return start.released if start else None
        holder = self.content if imported else self.content.get(INIT_FROM)
        plain = holder.get(RELEASED) if isinstance(holder, Mapping) else None
        return None if plain is None else decode(plain, ReleasedAs, f"{self.path}: {RELEASED}")

    def weights(self, name: str) -> dict[str, Tensor]:
        """Return the state dict of a sub-module of the LightningModule, averaged where there are averages."""
        prefix = f"{name}."
        state = self.content.get(STATE_DICT)
        if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
            raise UserError(f"{self.path} holds no weights by name: it is broken, or no checkpoint of cli.py")
        average = self._average
        names = [key for key in state if key.startswith(prefix)]
        return {key.removeprefix(prefix): average[key] if key in average else state[key] for key in names}

    @float32_weights()
    def tokenizer(self, trust: Sequence[str] = ()) -> Tokenizer:
        """Rebuild the tokenizer; see :func:`load_tokenizer`."""
        section = self.model.get(TOKENIZER)
        if not isinstance(section, dict):
            raise UserError(f"{self.path} is not the checkpoint of a tokenizer: its model section has no tokenizer")
        tokenizer: Tokenizer = build(section, Tokenizer, str(self.path), trust)  # type: ignore[type-abstract]
        if self.content.get(FROZEN):
            check_frozen(self.content[FROZEN], tokenizer.frozen_identities(), str(self.path))
        return self._load(tokenizer, TOKENIZER)

    @float32_weights()
    def generator(self, trust: Sequence[str] = (), tokenizer: Tokenizer | None = None) -> Generator:
        """Rebuild the generator; see :func:`load_generator`.

        Args:
            trust: packages besides polytoken whose classes the checkpoint may name.
            tokenizer: that of its tokens, if loaded already; its codec is used by generators that need one.
        """
        record = self.record
        generator = build(self.model.get(GENERATOR), Generator, str(self.path), trust)  # type: ignore[type-abstract]
        codec = None
        if generator.needs_codec and tokenizer is not None:
            codec = FrozenCodec(lambda: tokenizer, record.sub_codes)
        elif generator.needs_codec:
            codec = load_codec(record, f"{self.path} writes", self.path, trust)
        generator.connect(record.described(generator, f"the record of {self.path}"), record.num_classes, codec)
        return self._load(generator, GENERATOR)

    def outline(self, trust: Sequence[str] = ()) -> Generator:
        """Rebuild the generator on the meta device, without its weights, to count parameters or operations.

        Args:
            trust: packages besides polytoken whose classes the checkpoint may name.
        """
        record = self.record
        with torch.device("meta"):
            generator = build(self.model.get(GENERATOR), Generator, str(self.path), trust)  # type: ignore[type-abstract]
            spec = record.described(generator, f"the record of {self.path}")
            codec = None
            if generator.needs_codec:
                if record.spec is None or record.latents is None:
                    raise UserError(f"{self.path} does not describe the tokenizer's vectors: train it on a new store")
                codec = BlankCodec(record.latents.shape, len(record.spec.scales))
            generator.connect(spec, record.num_classes, codec)
        return generator.eval()

    def _load(self, network: Network, name: str) -> Network:
        weights = self.weights(name)
        try:
            network.load_state_dict(weights)
        except RuntimeError as error:
            head, *listed = str(error).splitlines()
            more = f" (and {len(listed) - 1} more)" if len(listed) > 1 else ""
            raise UserError(
                f"the weights in {self.path} do not fit the {name} that it describes: "
                f"{(listed or [head])[0].strip()[:200]}{more}. "
                "Train the run again, or read it with the version of the code that wrote it"
            ) from error
        if broken := [key for key, tensor in network.state_dict().items() if not bool(tensor.isfinite().all())]:
            raise UserError(
                f"the {name}'s {broken[0]} in {self.path} is not finite: training failed or the file is damaged, so "
                "train the run again, or name an earlier checkpoint"
            )
        return network.eval().requires_grad_(False)

    @property
    def _average(self) -> dict[str, Tensor]:
        average: Any = self.content
        for key in (CALLBACKS, EMA, AVERAGE):
            average = average.get(key) or {}
            if not isinstance(average, dict):
                raise UserError(f"{self.path} is broken: {CALLBACKS}.{EMA}.{AVERAGE} is not a mapping")
        return average


def checkpoint_path(run: str | Path) -> Path:
    """Return the last checkpoint of a run's directory, or ``run`` itself if it is a checkpoint."""
    path = Path(run)
    return path / CHECKPOINTS / LAST if path.is_dir() and not (path / SHARDED).exists() else path


def read_metadata(path: Path) -> dict[str, Any]:
    """Read a checkpoint file with memory-mapped tensors; of a sharded one, all but weights and optimizers.

    Raises:
        UserError: if it is unreadable, or one of its records has another checksum than when it was written.
    """
    file = path / SHARDED if path.is_dir() else path
    if (damage := damage_of_archive(file)) is not None:
        raise UserError(f"{path} is not a readable checkpoint ({damage}): {REMEDY}")
    try:
        content = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except DAMAGED as error:
        raise UserError(f"{path} is not a readable checkpoint ({why_unreadable(error)}): {REMEDY}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a readable checkpoint (it holds a {type(content).__name__})")
    check_size(content, path)
    return content


def recorded_step(path: Path) -> int | None:
    """Optimizer steps that a checkpoint records, or None if it cannot be read; no weights are read or verified."""
    file = path / SHARDED if path.is_dir() else path
    try:
        content = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except DAMAGED:
        return None
    step = content.get(GLOBAL_STEP) if isinstance(content, dict) else None
    return step if isinstance(step, int) else None


def record_in(content: Mapping[str, Any], path: Path) -> GeneratorRecord:
    """Return the validated generator record of a checkpoint's content.

    Raises:
        UserError: if it is not a generator's, or its record is broken.
    """
    if not isinstance(content.get(GENERATOR), dict):
        raise UserError(
            f"{path} is not the checkpoint of a generator: it has no record of what it generates. Name a run of stage "
            "2 or of another generator"
        )
    return GeneratorRecord.from_plain(content[GENERATOR], f"{path}: {GENERATOR}")
