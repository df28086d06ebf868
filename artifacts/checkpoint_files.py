"""Checkpoint files: atomic writing, moving and copying, and detection of damage."""

from __future__ import annotations

import io
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch.distributed.checkpoint.metadata import BytesStorageMetadata

from polytoken.errors import RunError
from polytoken.files import PARTIAL, file_sha256, remove, replacing, sync, write_text
from polytoken.integrity import DAMAGED, damage_of_archive, damage_of_records
from polytoken.layout import LAST, SHARDED
from polytoken.weights import why_unreadable

PREVIOUS, BEST, NEXT = "previous.ckpt", "best.ckpt", "next.ckpt"
RUINED = "ruined.ckpt"  # weights that gave no finite loss
INDEX = ".metadata"  # torch's index of a sharded checkpoint
SEAL = ".metadata.sha256"  # our digest of it


class SyncedCheckpointIO(TorchCheckpointIO):
    """Checkpoint writer that streams to a temporary file, waits for the disk, and renames.

    Lightning's own makes a copy in memory and a second one in the temporary directory, which is small on many nodes.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint; raises RunError, and leaves nothing half-written, if the disk is full or read-only."""
        with replacing(path) as unfinished, unfinished.open("wb") as file:
            torch.save(checkpoint, file)


def seal(path: Path) -> None:
    """Write the digest of a sharded checkpoint's index, which has no checksum of its own; leave a file as it is."""
    if path.is_dir():
        write_text(path / SEAL, file_sha256(path / INDEX))


def check_writable(directory: Path) -> None:
    """Raise RunError now, rather than at the first checkpoint, if the directory is not writable."""
    probe = directory / f".writable.{os.getpid()}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise RunError(
            f"no checkpoint can be written to {directory}: {error.strerror or error}. Make it a writable directory, "
            "or choose another place by run.root"
        ) from error


def move(path: Path, target: Path) -> None:
    """Rename a checkpoint over another one; a kill leaves the old one or the new one whole."""
    aside = target.with_name(f"{target.name}.old")
    if aside.exists() and not target.exists():  # left by a kill
        aside.rename(target)
    if aside.exists():
        shutil.rmtree(aside)
    if target.is_dir():  # a rename over a non-empty directory fails
        target.rename(aside)
    elif path.is_dir():  # and so does a rename of a directory over a file
        target.unlink(missing_ok=True)
    path.replace(target)
    if aside.exists():
        shutil.rmtree(aside)


def copy(path: Path, target: Path) -> None:
    """Keep a checkpoint under a second name, by a hard link where the file system has them."""
    if target.exists() and path.samefile(target):  # a rename of one name of a file over another removes neither
        return
    unfinished = target.with_name(f"{target.name}{PARTIAL}")
    remove(unfinished)
    if path.is_dir():
        shutil.copytree(path, unfinished, copy_function=_link)
    else:
        _link(path, unfinished)
    move(unfinished, target)


def candidates(directory: Path) -> list[Path]:
    """The checkpoints from which a run can resume, newest first; among them links that lead nowhere."""
    kept = sorted(directory.glob("step_*.ckpt"), key=lambda path: (len(path.name), path.name), reverse=True)
    return [path for path in (directory / LAST, directory / PREVIOUS, *kept) if os.path.lexists(path)]


def fault(path: Path) -> str | None:
    """Describe the damage of a checkpoint, or return None. Reads the whole file: torch loads damaged tensors silently.

    Reads all parts of a sharded checkpoint, each record of which has a checksum.
    """
    if path.is_dir():
        missing = [name for name in (SHARDED, INDEX) if not (path / name).is_file()]
        return f"{missing[0]} is missing in it" if missing else fault(path / SHARDED) or _fault_of_shards(path)
    if (damage := damage_of_archive(path)) is not None:
        return damage
    try:
        torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except DAMAGED as error:
        return why_unreadable(error)
    return None


RECORDS = "torch.distributed.checkpoint.metadata"
NAMES = {
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    ("torch", "Size"),
    ("pathlib", "PosixPath"),
    ("pathlib._local", "PosixPath"),  # Python 3.13
}


class _IndexUnpickler(pickle.Unpickler):
    """Unpickler that admits the plain records of an index, and no callable with side effects."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in NAMES:
            return super().find_class(module, name)
        if module in ("torch", RECORDS) and "." not in name:
            value = super().find_class(module, name)
            if isinstance(value, torch.dtype) or (isinstance(value, type) and value.__module__ == RECORDS):
                return value
        raise pickle.UnpicklingError(f"GLOBAL {module}.{name} in {INDEX}")


def _fault_of_shards(path: Path) -> str | None:
    """Describe damage of a sharded checkpoint: of its index, or of a value, each of which is a torch file in a part."""
    seal = path / SEAL
    if seal.is_file() and seal.read_text().strip() != file_sha256(path / INDEX):
        return f"its {INDEX} has another SHA-256 than when it was written"
    try:
        index = _IndexUnpickler(io.BytesIO((path / INDEX).read_bytes())).load()
        for name, nesting in (index.planner_data or {}).items():
            if ".".join(map(str, nesting)) != name:  # torch joins them when it flattens a state dict
                return f"its {INDEX} is damaged: it nests {name} as {'.'.join(map(str, nesting))}"
        for key, place in index.storage_data.items():
            part = path / place.relative_path
            if not part.is_file():
                return f"{part.name} is missing in it"
            if part.stat().st_size < place.offset + place.length:
                return f"{part.name} is cut short in it"
            with part.open("rb") as file:
                file.seek(place.offset)
                value = io.BytesIO(file.read(place.length))
            if (damage := damage_of_records(value, place.length)) is not None:
                return f"{damage} in {part.name}, of {key.fqn}"
            if isinstance(index.state_dict_metadata[key.fqn], BytesStorageMetadata):
                value.seek(0)
                torch.load(value, weights_only=True)  # which torch will unpickle
    except (AttributeError, LookupError, TypeError) as error:
        return f"its {INDEX} is damaged ({error!r})"
    except DAMAGED as error:
        return why_unreadable(error)
    return None


def _link(path: str | Path, target: str | Path) -> None:
    try:
        os.link(path, target)
    except OSError:
        shutil.copy2(path, target)
        sync(Path(target))
