"""One process at a time writes a directory; a kill releases it."""

import errno
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from artifacts import lock
from polytoken.errors import RunError, UserError


@pytest.fixture(autouse=True)
def released() -> Iterator[None]:
    lock.release_all()
    yield
    lock.release_all()


@contextmanager
def held_elsewhere(path: Path, is_file: bool = False) -> Iterator[int]:
    """Process id of a child that holds a lock, and of which a child of its own lives on; both are killed at the end."""
    reads, writes = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.setpgid(0, 0)
            lock.hold(path, is_file)
            if os.fork():
                os.write(writes, b"x")
            signal.alarm(30)  # ends a process that nobody kills
            signal.pause()
        finally:
            os._exit(1)  # never on into pytest
    os.close(writes)
    try:
        assert os.read(reads, 1) == b"x"
        yield child
    finally:
        os.close(reads)
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        with suppress(ChildProcessError):  # waited for in the test
            os.waitpid(child, 0)


@pytest.mark.parametrize("is_file", [False, True])
def test_a_second_process_names_the_holder_until_it_is_killed(is_file: bool, tmp_path: Path) -> None:
    place = tmp_path / "judge.safetensors" if is_file else tmp_path / "run"
    with held_elsewhere(place, is_file) as child:
        with pytest.raises(UserError, match=f"is in use by process {child} on {socket.gethostname()}: wait until"):
            lock.hold(place, is_file)
        lock.hold(tmp_path / "other", is_file)
        os.kill(child, signal.SIGKILL)  # its own child, as a data worker, is left and keeps nothing
        os.waitpid(child, 0)
        lock.hold(place, is_file)
        lock.hold(place, is_file)  # again, by the same process
    held = place.with_name(".judge.safetensors.lock") if is_file else place / ".lock"
    assert held.read_text() == f"process {os.getpid()} on {socket.gethostname()}"


def test_whoever_may_write_the_directory_may_lock_it_next(tmp_path: Path) -> None:
    umask = os.umask(0o002)  # of a shared group directory
    try:
        lock.hold(tmp_path / "run")
    finally:
        os.umask(umask)
    assert (tmp_path / "run/.lock").stat().st_mode & 0o777 == 0o664


def test_a_deleted_directory_is_noticed(tmp_path: Path) -> None:
    lock.check_in_place(tmp_path / "not held")
    lock.hold(tmp_path / "run")
    lock.check_in_place(tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "moved")
    with pytest.raises(RunError, match="run was deleted or replaced while this run was writing to it"):
        lock.check_in_place(tmp_path / "run")
    lock.hold(tmp_path / "run")  # another start of the same process
    lock.check_in_place(tmp_path / "run")


def test_links_in_a_loop_are_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(RunError, match="loop/run cannot be written: Too many levels of symbolic links"):
        lock.hold(tmp_path / "loop/run")


def test_a_refusal_leaves_no_empty_directory(tmp_path: Path) -> None:
    lock.hold(tmp_path / "new")
    lock.hold(tmp_path / "old")
    (tmp_path / "old/config.yaml").touch()
    lock.abandon()
    assert sorted(path.name for path in tmp_path.rglob("*")) == [".lock", "config.yaml", "old"]
    lock.hold(tmp_path / "old")
    lock.release_all()


def test_a_place_without_locks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.lockf", refused)
    lock.hold(tmp_path / "run")
    lock.hold(tmp_path / "run")
    (message,) = caplog.messages
    assert message == (
        f"locks do not work here (No locks available): start no second program that writes to {tmp_path / 'run'}"
    )
