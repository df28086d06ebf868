"""Start of a generator's run: its record, and the weights of an earlier stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from polytoken import records
from polytoken.errors import UserError
from polytoken.files import file_sha256, real_path
from polytoken.generators.base import Generator, SubCode
from polytoken.generators.record import GeneratorRecord, InitFrom, Lineage
from polytoken.handover import CLASS_EMBEDDING, by_class, carry_over
from polytoken.loading import Checkpoint, checkpoint_path

if TYPE_CHECKING:
    from datamodules.stored import StoredTokens

LINEAGE = "lineage.json"
SHOWN = 5  # classes in a message


def record_of(data: StoredTokens) -> GeneratorRecord:
    """Return the record of a generator that starts from scratch on the tokens of a data module."""
    return GeneratorRecord(
        spec=data.spec,
        full_spec=data.full_spec,
        sub_codes=tuple(data.sub_codes),
        tokenizer_run=str(data.tokenizer_run),
        tokenizer_fingerprint=data.tokenizer_fingerprint,
        num_classes=data.num_classes,
        class_to_idx=dict(data.class_to_idx),
        lineage=Lineage(str(data.tokenizer_run), data.tokenizer_fingerprint, str(data.store)),
        latents=data.latents,
    )


def hand_over(init_from: str, generator: Generator, record: GeneratorRecord, trust: Sequence[str] = ()) -> InitFrom:
    """Copy the weights of an earlier stage into a new generator.

    Args:
        init_from: run or checkpoint of the earlier stage.
        generator: connected; changed in place.
        record: of the new run.
        trust: packages besides polytoken whose classes the earlier checkpoint may name.

    Raises:
        MissingFileError: if there is no such run.
        UserError: if it is not a generator's, its weights do not fit, or its tokenizer was trained since.
    """
    checkpoint = Checkpoint.open(init_from)
    source = checkpoint.record
    sub_code = shared_sub_code(source, record, checkpoint.path)
    earlier = checkpoint.generator(trust)
    if earlier.models != generator.models:
        raise UserError(
            f"{checkpoint.path} is a {type(earlier).__name__}, of {earlier.models}, and this run trains a "
            f"{type(generator).__name__}, of {generator.models}: set init_from to a run of the same family, or to null"
        )
    weights = by_class(earlier.state_dict(), source.class_to_idx, record.class_to_idx)
    if weights is None:
        rank_zero_warn(
            f"{checkpoint.path} has the classes {_shown(source.class_to_idx)}, and this run has "
            f"{_shown(record.class_to_idx)}: the class embedding is trained from scratch"
        )
        handover = carry_over(earlier.state_dict(), generator, sub_code, unused=(CLASS_EMBEDDING,))
    else:
        handover = carry_over(weights, generator, sub_code)
    rank_zero_info(f"weights of {checkpoint.path}\n{handover}")
    return InitFrom(
        path=str(checkpoint.path),
        sha256=checkpoint.sha256,
        step=checkpoint.step,
        tokenizer_fingerprint=source.tokenizer_fingerprint,
        sub_codes=source.sub_codes,
        sub_code=sub_code,
        carried=handover.carried,
        fresh=handover.fresh,
        left_behind=handover.left_behind,
        released=checkpoint.released,
    )


def check_same_tokens(before: GeneratorRecord, now: GeneratorRecord, checkpoint: Path, init_from: str | None) -> None:
    """Compare the tokens that a checkpoint was trained on with those of the store.

    Warns if the earlier stage has changed since the run started from it.

    Raises:
        UserError: if they are of another kind, other sub-codes, of another grid, or of another tokenizer.
    """
    store = now.lineage.store
    remedy = "read the store it was trained on, or start another run (run.stage)"
    kind, held = _kind(before), _kind(now)
    if kind != held:
        raise UserError(f"{checkpoint} was trained on {kind}, and {store} holds {held}: {remedy}")
    if before.tokenizer_fingerprint != now.tokenizer_fingerprint:
        raise UserError(
            f"{checkpoint} writes {kind} of {before.tokenizer}, and {store} holds {kind} of {now.tokenizer}: {remedy}"
        )
    if _shape(before) != _shape(now):
        raise UserError(
            f"{checkpoint} writes {kind} of {_shape(before)}, and {store} holds {kind} of {_shape(now)}: {remedy}"
        )
    if before.sub_codes != now.sub_codes:
        raise UserError(
            f"{checkpoint} writes the sub-codes {[*before.sub_codes]} of {before.tokenizer}, and the data are the "
            f"sub-codes {[*now.sub_codes]}: set data.sub_codes to those of the checkpoint"
        )
    source = before.lineage.init_from
    if init_from is not None and source is not None:
        file = checkpoint_path(init_from)
        if file.is_file() and file_sha256(file) != source.sha256:
            rank_zero_warn(
                f"{file} has changed since this run began with it; the run continues with its own weights. "
                "To begin with the new ones, delete the run's directory or set run.stage to a new name."
            )


def check_same_teacher(before: GeneratorRecord, now: GeneratorRecord, checkpoint: Path) -> None:
    """Raise UserError if the teacher of an alignment is not the one that a checkpoint was trained with."""
    if before.teacher != now.teacher:
        raise UserError(
            f"{checkpoint} was aligned with {_teacher(before)}, and this run has {_teacher(now)}: restore its weights "
            "(alignment.teacher), or start another run (run.stage)"
        )


def shared_sub_code(source: GeneratorRecord, record: GeneratorRecord, path: Path) -> SubCode:
    """Return which of a run's sub-codes an earlier stage was trained on.

    ``all`` means the same ones in the same order. None means those of another tokenizer, or several others.

    Raises:
        UserError: if both name the same tokenizer's run, but the tokenizer has changed.
    """
    if source.tokenizer_fingerprint != record.tokenizer_fingerprint:
        if real_path(source.tokenizer_run) == real_path(record.tokenizer_run):
            raise UserError(
                f"{path} was trained on {_kind(source)} of {source.tokenizer}, and {record.lineage.store} holds "
                f"{_kind(record)} of {record.tokenizer}: the tokenizer was trained on in between, so train the earlier "
                "stage again on this store (delete its directory or give it another run.stage)"
            )
        return None
    if source.sub_codes == record.sub_codes:
        return "all"
    first, *others = source.sub_codes
    return record.sub_codes.index(first) if not others and first in record.sub_codes else None


def write_lineage(directory: Path, lineage: Lineage) -> None:
    """Write ``lineage.json``."""
    directory.mkdir(parents=True, exist_ok=True)
    records.write(directory / LINEAGE, lineage)


def _shown(class_to_idx: Mapping[str, int]) -> str:
    names = sorted(class_to_idx, key=class_to_idx.__getitem__)
    return ", ".join(names[:SHOWN]) + (f" … ({len(names)})" if len(names) > SHOWN else "")


def _teacher(record: GeneratorRecord) -> str:
    if record.teacher is None:
        return "no teacher"
    name, digest = record.teacher.split()
    return f"the teacher {name} (digest {digest[:12]})"


def _kind(record: GeneratorRecord) -> str:
    return "latents" if record.full_spec is None else "codes"


def _shape(record: GeneratorRecord) -> str:
    if record.full_spec is not None:
        grids = ", ".join(f"{height} × {width}" for height, width in record.full_spec.scales)
        return f"{[*record.full_spec.codebook_sizes]} entries on a grid of {grids}"
    assert record.latents is not None  # or the store holds nothing
    height, width = record.latents.grid
    return f"{record.latents.channels} channels on a grid of {height} × {width}"
