"""Index of a tar shard: where its images lie, so that each can be read alone.

Members of an uncompressed tar are contiguous, so an image is a range of bytes. The headers are read once; the index is
kept in `$XDG_CACHE_HOME/polytoken/tar_index` (`~/.cache` by default) and is valid while size and time of the shard stay
the same.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
from contextlib import suppress
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from stat import S_ISREG
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np

from datamodules.sources.listing import EXTENSIONS
from polytoken.errors import RunError, UserError
from polytoken.files import write_bytes

NO_LABEL = -1
FORMAT = 1
LARGEST_LABEL_BYTES = 1 << 20  # of a .cls or .json member
LARGEST_INTEGER = np.iinfo(np.int64).max  # that the index holds
# as the library webdataset splits names: a key with its folders, and all extensions
NAME = re.compile(r"((?:.*/)?[^./]+)\.([^/]*)", re.DOTALL)
COMPRESSED = {
    b"\x1f\x8b": "gunzip",
    b"BZh": "bunzip2",
    b"\xfd7zXZ": "unxz",
    b"\x28\xb5\x2f\xfd": "unzstd",
}


class TarIndex(NamedTuple):
    """The images of a shard, in its order.

    Args:
        offsets: first byte of each, int64 (n,).
        sizes: bytes of each, int64 (n,).
        labels: classes, int64 (n,); `NO_LABEL` where none can be read.
        names: names of the members, UTF-8 without separators, uint8.
        bounds: begin of each name, and the end of the last, int64 (n + 1,).
    """

    offsets: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray
    names: np.ndarray
    bounds: np.ndarray


class Stamp(NamedTuple):
    """State of a file in which its index is valid."""

    size: int
    changed_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Stamp:
        """Size and time of modification."""
        return cls(status.st_size, status.st_mtime_ns)


def read_index(shard: Path) -> TarIndex:
    """Return the index of a shard; reads its headers if they have not been read before or the shard has changed.

    Raises:
        UserError: The shard is no file, compressed, truncated or damaged, or it holds links, a name twice or no images.
    """
    try:
        status = shard.stat()
        if not S_ISREG(status.st_mode):  # opening a pipe would wait for its writer
            raise UserError(f"{shard} is no regular file: remove it, or put the shard itself in its place")
        stamp, cache = Stamp.of(status), _cache(shard)
        found = _cached(cache, stamp)
        if found is None:
            found = scan(shard)
            with suppress(RunError):  # without a place for it, the next process reads the headers again
                content = BytesIO()
                np.savez(content, stamp=(FORMAT, *stamp), **found._asdict())
                write_bytes(cache, content.getvalue())
        return found
    except OSError as error:
        raise UserError(f"{shard} cannot be read ({error.strerror or error}): allow reading it") from error


def scan(shard: Path) -> TarIndex:
    """Read the headers of a shard, and its labels."""
    images: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, int] = {}
    seen: set[str] = set()
    with shard.open("rb") as file:
        _refuse_compressed(shard, file.read(8))
        size = os.fstat(file.fileno()).st_size
        file.seek(0)
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                end = 0
                while (member := tar.next()) is not None:
                    tar.members.clear()  # tarfile would keep all of them
                    if member.offset < end:  # a negative size; tarfile would read in a circle
                        raise tarfile.ReadError(f"the header of {member.name} is damaged")
                    end = member.offset_data
                    match = NAME.fullmatch(member.name)
                    if member.isdir() or match is None:
                        continue
                    key, extension = match[1], match[2].lower()
                    if f".{extension}" not in EXTENSIONS and extension not in ("cls", "json"):
                        continue
                    if not member.isreg() or member.issparse():
                        raise UserError(
                            f"{shard}: {member.name} is a link or a sparse file, and no file of its own: pack the "
                            "shard again (tar --dereference --hard-dereference)"
                        )
                    if not 0 <= member.size <= size - member.offset_data:
                        raise tarfile.ReadError(f"{member.name} ends beyond the file")
                    if member.name in seen:
                        raise UserError(f"{shard} holds {member.name} twice: pack the shard again, each name once")
                    seen.add(member.name)
                    if extension in ("cls", "json"):
                        content = os.pread(file.fileno(), min(member.size, LARGEST_LABEL_BYTES), member.offset_data)
                        label = _label(content, extension)
                        if label != NO_LABEL and (extension == "cls" or key not in labels):
                            labels[key] = label
                    elif key in images:
                        raise UserError(
                            f"{shard} holds two images of one key, {images[key][0]} and {member.name}: "
                            "pack the shard again, one image a key"
                        )
                    else:
                        images[key] = member.name, member.offset_data, member.size
                _check_end(os.pread(file.fileno(), tarfile.BLOCKSIZE, tar.offset))
        except (tarfile.TarError, ValueError, OverflowError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{shard} is truncated or no tar file ({error}): copy or pack it again") from error
    if not images:
        raise UserError(f"{shard} holds no images ({', '.join(EXTENSIONS)}): remove it, or pack it again")
    return _arrays(images, labels)


def _arrays(images: dict[str, tuple[str, int, int]], labels: dict[str, int]) -> TarIndex:
    names = [os.fsencode(name) for name, _, _ in images.values()]
    return TarIndex(
        np.array([offset for _, offset, _ in images.values()], dtype=np.int64),
        np.array([size for _, _, size in images.values()], dtype=np.int64),
        np.array([labels.get(key, NO_LABEL) for key in images], dtype=np.int64),
        np.frombuffer(b"".join(names), dtype=np.uint8),
        np.cumsum([0, *map(len, names)], dtype=np.int64),
    )


def _label(content: bytes, extension: str) -> int:
    label: Any = None
    with suppress(ValueError, RecursionError):  # not UTF-8, no JSON, no number
        if extension == "cls":
            label = int(content)
        elif isinstance(record := json.loads(content), dict):
            label = record.get("label")
    return label if type(label) is int and 0 <= label <= LARGEST_INTEGER else NO_LABEL


def _refuse_compressed(shard: Path, head: bytes) -> None:
    for magic, program in COMPRESSED.items():
        if head.startswith(magic):
            raise UserError(
                f"{shard} is compressed, and its images could be read in their order only: "
                f"decompress it with {program} to a plain .tar (images gain nothing by it)"
            )


def _check_end(block: bytes) -> None:
    # tarfile takes the end of the file, or a damaged header, for the end of the archive
    if len(block) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError("it has no mark of its end")
    if any(block):
        raise tarfile.ReadError("a header is damaged")


def _cache(shard: Path) -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    name = sha256(os.fsencode(os.path.realpath(shard))).hexdigest()[:32]
    return Path(root, "polytoken", "tar_index", f"{name}.npz")


def _cached(cache: Path, stamp: Stamp) -> TarIndex | None:
    try:
        with np.load(cache, allow_pickle=False) as content:
            if content["stamp"].tolist() != [FORMAT, *stamp]:
                return None
            return TarIndex(*(content[name] for name in TarIndex._fields))
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None
