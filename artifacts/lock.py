"""Locks: one process at a time writes a run, a token store, a set of samples or the file of a teacher.

A lock is a POSIX record lock on a hidden file. The kernel releases it when the process ends, however it ends, and child
processes do not inherit it, so that a data worker which outlives a killed run does not keep it. The file stays, and
means nothing by itself. On NFS the lock holds between machines unless the mount has the option `nolock`.
"""

from __future__ import annotations

import fcntl
import logging
import os
import socket
from functools import cache
from pathlib import Path

from polytoken.errors import RunError, UserError
from polytoken.files import real_path

logger = logging.getLogger(__name__)

LOCK = ".lock"  # in a directory
_held: dict[Path, int] = {}  # descriptors; closing any other descriptor of a file would release its lock


def hold(path: Path, is_file: bool = False) -> None:
    """Lock a directory, which is created, or a file to be written, until :func:`release_all`.

    A second call by this process does nothing.

    Raises:
        UserError: another process holds it; the sentence names process and machine.
        RunError: the place cannot be written.
    """
    place = real_path(path)
    file = place.with_name(f".{place.name}.lock") if is_file else place / LOCK
    if file in _held and _is_in_place(file):
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)  # less the umask, as all other files
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror}: make it writable, or name another one") from error
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        holder = os.read(descriptor, 200).decode(errors="replace").strip() or "another process"
        os.close(descriptor)
        raise UserError(
            f"{path} is in use by {holder}: wait until that ends, or choose another place (run.stage)"
        ) from None
    except OSError as error:  # a file system without locks
        os.close(descriptor)
        _warn_once(f"locks do not work here ({error.strerror}): start no second program that writes to {path}")
        return
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
    _held[file] = descriptor


def check_in_place(path: Path) -> None:
    """Raise RunError if a directory that this process holds was deleted or replaced since."""
    file = real_path(path) / LOCK
    if file in _held and not _is_in_place(file):
        raise RunError(
            f"{path} was deleted or replaced while this run was writing to it, with its checkpoints: restore it, or "
            "start the run again"
        )


def release_all() -> None:
    """Release the locks of this process."""
    while _held:
        os.close(_held.popitem()[1])


def abandon() -> None:
    """Release the locks of this process after a refusal, and remove directories that hold nothing else."""
    while _held:
        file, descriptor = _held.popitem()
        if file.name == LOCK and file.exists() and os.listdir(file.parent) == [LOCK]:
            file.unlink()
            file.parent.rmdir()
        os.close(descriptor)


@cache  # the writers of a prediction lock the directory of their run again
def _warn_once(sentence: str) -> None:
    logger.warning(sentence)


def _is_in_place(file: Path) -> bool:
    mine = os.fstat(_held[file])
    try:
        found = file.stat()
    except OSError:
        return False
    return (mine.st_dev, mine.st_ino) == (found.st_dev, found.st_ino)
