"""Atomic file writes, and SHA-256 digests."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from polytoken.errors import ExistingFileError, MissingFileError, RunError, UserError

PARTIAL = ".partial"  # suffix of incomplete files

# conditions of the disk, not faults of the code
DISK = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG),
}

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def is_full(error: BaseException | None) -> bool:
    """True for an error of the operating system that says that there is no room for a file, or one raised from it."""
    return error is not None and ((isinstance(error, OSError) and error.errno in FULL) or is_full(error.__cause__))


def real_path(path: str | Path) -> Path:
    """Absolute path without links; of links in a loop as well, at which `Path.resolve` raises RuntimeError."""
    return Path(os.path.realpath(path))


def remove(path: Path) -> None:
    """Delete a file, a link or a whole directory, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def check_no_pipe(path: str | Path) -> None:
    """Raise OSError for a named pipe: whoever opens it waits for a writer, which may never come."""
    if stat.S_ISFIFO(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, "it is a pipe, and no file")


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the same directory, and rename it to `path` when the block ends.

    A reader sees the old file or the new one, even after a power cut: file and directory are flushed to the disk. If
    the block raises, the temporary file is removed and `path` stays as it was. The temporary name is fixed, so that a
    writer overwrites what a killed one left; two processes must not write one `path` through this function at once.

    Raises:
        RunError: the disk is full, or the directory is not writable.
    """
    with _renamed(Path(path), f"{Path(path).name}{PARTIAL}") as temporary:
        yield temporary


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a small file as :func:`replacing` does; several processes may do so at once, and the last one wins."""
    path = Path(path)
    with _renamed(path, f"{path.name}.{secrets.token_hex(4)}{PARTIAL}") as temporary:
        temporary.write_bytes(content)


def write_text(path: str | Path, text: str) -> None:
    """Write a small UTF-8 file; see :func:`write_bytes`. A lone surrogate becomes an escape."""
    write_bytes(path, text.encode(errors="backslashreplace"))


def check_free(place: Path) -> None:
    """Raise ExistingFileError if a place holds anything, so that :func:`new_folder` cannot make it."""
    if place.is_symlink() or (place.exists() and not (place.is_dir() and not any(place.iterdir()))):
        raise ExistingFileError(f"{place} exists and is no empty folder: name another one as --to, or delete it")


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the same directory, and rename it to ``path`` when the block ends.

    The block makes the folder by writing its first file. If it raises, nothing is left; what a killed writer left is
    removed by the next one. ``path`` must not exist, or be an empty folder.
    """
    path = real_path(path)
    partial = path.with_name(f".{path.name}{PARTIAL}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        yield partial
        sync(partial)
        partial.rename(path)
        sync(path.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def is_file_name(name: str) -> bool:
    """True if a directory can hold a file of this name, with the suffix of an incomplete one."""
    try:
        return name not in (".", "..") and not {"/", "\0"} & {*name} and 0 < len(name.encode()) <= 240
    except UnicodeEncodeError:  # a lone surrogate
        return False


def sync(path: Path) -> None:
    """Flush a file, or the entries of a directory, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file, in hex.

    Raises:
        MissingFileError: there is no such file.
        UserError: it cannot be read: it is a directory, or a loop of links.
    """
    try:
        check_no_pipe(path)
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise MissingFileError(f"{path} does not exist") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


@contextmanager
def _renamed(path: Path, name: str) -> Iterator[Path]:
    temporary = path.with_name(name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    except BaseException as error:
        with suppress(OSError):  # the directory may not exist
            temporary.unlink(missing_ok=True)
        if reason := _condition_of_disk(error):
            raise RunError(
                f"{path} cannot be written: {reason}. What was saved before is whole: make room or make the directory "
                "writable, and start again"
            ) from error
        raise


def _condition_of_disk(error: BaseException | None) -> str | None:
    """Message of the operating system for a full or read-only disk, also if a library raised its own error after it."""
    while error is not None and not isinstance(error, UserError):
        rust = re.search(r"\(os error (\d+)\)", str(error))  # safetensors
        code = int(rust[1]) if rust else getattr(error, "errno", None)
        if code in DISK:
            return os.strerror(code)
        error = error.__cause__ or error.__context__
    return None
