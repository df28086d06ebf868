"""Npz archives, read and written in chunks: sizes are checked against the header before anything is read.

Nothing in a file is ever unpickled.
"""

from __future__ import annotations

import lzma
import math
import struct
import tokenize
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile, ZipFile

import numpy as np

from polytoken.errors import UserError, first_line
from polytoken.files import replacing

LIMIT = 1 << 30  # bytes of an array that is read whole

# raised by zipfile, its codecs and numpy on files that are cut short, damaged, encrypted, pickled, or no npz at all
BROKEN = (
    *(BadZipFile, zlib.error, lzma.LZMAError, struct.error, tokenize.TokenError),
    *(OSError, EOFError, RuntimeError, SyntaxError, ValueError, KeyError, TypeError, OverflowError, MemoryError),
)


class Header(NamedTuple):
    """Shape, order and type of an array, and the bytes that its header takes."""

    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype
    start: int

    @property
    def size(self) -> int:
        """Bytes of the array."""
        return math.prod(self.shape) * self.dtype.itemsize


@contextmanager
def reading(path: Path, problem: str, remedy: str) -> Iterator[ZipFile]:
    """Open an archive; every error of a reader becomes `<path> <problem>: <reason>. <remedy>`.

    Raises:
        UserError: the file is not a readable archive, or the block raises one of `BROKEN`.
    """
    try:
        with ZipFile(path) as archive:
            yield archive
    except BROKEN as error:
        reason = first_line(error).strip("'\". ") or type(error).__name__
        raise UserError(f"{path} {problem}: {reason}. {remedy}") from error


def names(archive: ZipFile) -> set[str]:
    """Names of the arrays."""
    return {name.removesuffix(".npy") for name in archive.namelist()}


def read_header(archive: ZipFile, name: str) -> Header:
    """Shape and type of an array; raises UserError unless the archive holds exactly the bytes that these need."""
    if f"{name}.npy" not in archive.namelist():
        found = ", ".join(sorted(names(archive)))
        raise UserError(f"it has no array {name}, only {found or 'nothing'}")
    with archive.open(f"{name}.npy") as member:
        version = np.lib.format.read_magic(member)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        header = Header(*read(member), member.tell())
    if header.dtype.hasobject:
        raise UserError(f"{name} is a pickle, which is not read")
    if min(header.shape, default=0) < 0:
        raise UserError(f"{name} has the shape {header.shape}")
    size = archive.getinfo(f"{name}.npy").file_size - header.start
    if size != header.size:
        raise UserError(f"{name} has {size} bytes, and its header says {header.dtype} {header.shape}: {header.size}")
    return header


def read_array(archive: ZipFile, name: str) -> np.ndarray:
    """Read an array of at most `LIMIT` bytes."""
    header = read_header(archive, name)
    if header.size > LIMIT:
        raise UserError(f"{name} is {header.dtype} {header.shape}, more than {LIMIT >> 20} MiB")
    with archive.open(f"{name}.npy") as member:
        return np.lib.format.read_array(member, allow_pickle=False)


def image_shape(archive: ZipFile, name: str) -> tuple[int, int, int, int]:
    """The shape (n, H, W, 3) of an array of uint8 images; raises UserError if it is anything else."""
    shape, fortran_order, dtype, _ = read_header(archive, name)
    if dtype != np.uint8:
        raise UserError(f"{name} is {dtype}: images must be uint8 from 0 to 255, neither floats nor in [-1, 1]")
    if len(shape) != 4 or shape[-1] != 3 or 0 in shape:
        raise UserError(f"{name} has the shape {shape}, and images have (n, H, W, 3)")
    if fortran_order:
        raise UserError(f"{name} is in Fortran order, and images are read row by row")
    return shape


def read_images(archive: ZipFile, name: str, size: int) -> Iterator[np.ndarray]:
    """Yield uint8 (≤ size, H, W, 3), in order."""
    count, *shape = image_shape(archive, name)
    row = math.prod(shape)
    with archive.open(f"{name}.npy") as member:
        member.read(read_header(archive, name).start)
        for start in range(0, count, size):
            batch = min(size, count - start)
            yield np.frombuffer(member.read(batch * row), np.uint8).reshape(batch, *shape)
        member.read(1)  # at the end zipfile compares the checksum


def write(
    path: Path, arrays: Mapping[str, np.ndarray], images: Iterable[np.ndarray] = (), shape: tuple[int, ...] = (0,)
) -> None:
    """Write an archive atomically: images as `arr_0`, piece by piece, then arrays.

    Args:
        path: the file.
        arrays: by name.
        images: pieces uint8 (·, H, W, 3).
        shape: (n, H, W, 3) of all images together; n = 0 writes no `arr_0`.

    Raises:
        UserError: the pieces hold another number or size of images; nothing is written.
    """
    with replacing(path) as unfinished, ZipFile(unfinished, "w", allowZip64=True) as archive:
        if shape[0]:
            with archive.open("arr_0.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, {"descr": "|u1", "fortran_order": False, "shape": shape})
                written = 0
                for piece in images:
                    if piece.dtype != np.uint8 or piece.shape[1:] != shape[1:]:
                        raise UserError(f"images are {piece.dtype} {piece.shape[1:]}, expected uint8 {shape[1:]}")
                    member.write(np.ascontiguousarray(piece).data)
                    written += len(piece)
            if written != shape[0]:
                raise UserError(f"expected {shape[0]} images, got {written}: nothing was written to {path}")
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
