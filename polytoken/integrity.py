"""Damage of files of weights, which torch and safetensors read as other numbers without a word.

A torch file is a zip archive with a CRC-32 of each record. Our safetensors files carry a SHA-256 of header and tensors.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import pickle
import struct
import time
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

from safetensors import SafetensorError, safe_open
from torch import Tensor

from polytoken.errors import first_line
from polytoken.files import check_no_pipe
from polytoken.frozen import hash_tensors

SHA256 = "polytoken.sha256"  # key in the header of a safetensors file
ZIP = b"PK\x03\x04"
RACY = 2_000_000_000  # nanoseconds: a file this young may change again within one tick of its clock

# raised by zipfile, torch and its unpickler on damaged bytes; MemoryError by a damaged length
DAMAGED = (
    *(SafetensorError, pickle.UnpicklingError, zlib.error, lzma.LZMAError, struct.error, EOFError, OSError),
    *(RuntimeError, ValueError, MemoryError, OverflowError, LookupError, AttributeError, TypeError),
)

_intact: dict[Path, tuple[int, ...]] = {}


def damage_of(path: Path) -> str | None:
    """Describe damage of a torch or safetensors file; None if there is none, or the file has no digest.

    Reads the whole file, once in a process while its inode, time and size stay. Torch files of the format before 1.6
    and other people's safetensors have no digest.
    """
    return _once(path, _damage_of_safetensors if path.suffix == ".safetensors" else _damage_of_torch)


def damage_of_archive(path: Path) -> str | None:
    """Describe damage of a checkpoint, which must be a zip archive; see :func:`damage_of`."""
    return _once(path, _damage_of_zip)


def damage_of_records(file: Path | IO[bytes], size: int) -> str | None:
    """Compare the records of a torch file of that size in bytes with their CRC-32."""
    try:
        with zipfile.ZipFile(file) as archive:
            records = archive.infolist()
            stored = all(record.compress_type == zipfile.ZIP_STORED for record in records)
            if not stored or sum(record.file_size for record in records) > size:  # they would unpack without end
                return "its records are compressed, which torch never does"
            broken = archive.testzip()
    except zipfile.BadZipFile:
        return "it is cut short, or no checkpoint"
    except DAMAGED as error:
        return first_line(error)
    return None if broken is None else f"the checksum of its part {broken} is wrong"


def tensors_sha256(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """SHA-256 in hex over a file's metadata, and name, type, shape and bytes of its tensors."""
    digest = hashlib.sha256(json.dumps(sorted(metadata.items())).encode())
    hash_tensors(digest, tensors)
    return digest.hexdigest()


def _damage_of_zip(path: Path) -> str | None:
    return damage_of_records(path, path.stat().st_size)


def _damage_of_torch(path: Path) -> str | None:
    with path.open("rb") as file:
        return _damage_of_zip(path) if file.read(len(ZIP)) == ZIP else None


def _damage_of_safetensors(path: Path) -> str | None:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        expected = metadata.pop(SHA256, None)
        if expected is None:
            return None
        found = tensors_sha256({name: file.get_tensor(name) for name in file.keys()}, metadata)
    return None if found == expected else f"its SHA-256 is {found[:12]}…, and it was written with {expected[:12]}…"


def _once(path: Path, check: Callable[[Path], str | None]) -> str | None:
    try:
        status = path.stat()
        state = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
        if _intact.get(path.absolute()) == state:
            return None
        check_no_pipe(path)
        damage = check(path)
    except (SafetensorError, OSError) as error:
        return first_line(error)
    if damage is None and time.time_ns() - status.st_ctime_ns > RACY:
        _intact[path.absolute()] = state
    return damage
