"""Starts of `make`, and faults that hit make and all its children at a chosen moment."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from tests.support.commands import REPOSITORY, without_make

Fault = Literal["SIGKILL", "SIGTERM", "Ctrl-C", "full disk"]
FAULTS: tuple[Fault, ...] = get_args(Fault)
SIGNALS = {"SIGKILL": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "Ctrl-C": signal.SIGINT}
PATIENCE = 120.0  # seconds until a program must have left
TRACEBACK = "Traceback (most recent call last)"


@dataclass(frozen=True)
class End:
    """End of a start: exit code, times and tracebacks."""

    struck: bool  # by its fault
    code: int
    seconds: float
    left_after: float  # seconds from the fault to the end of the last process
    tracebacks: int
    hung: bool = False


def run(
    command: list[str], directory: Path, fault: Fault | None = None, when: Callable[[], bool] = lambda: False
) -> End:
    """Run a program in a process group of its own; the fault hits the whole group once `when` is true.

    The output goes through a pipe to `output.txt`: a full disk does not close the terminal.
    """
    environment = without_make() | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(REPOSITORY)}
    log = directory / "output.txt"
    size = log.stat().st_size if log.exists() else 0
    begun, at, hung = time.monotonic(), None, False
    with subprocess.Popen(["tee", "-a", str(log)], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as tee:
        process = subprocess.Popen(
            command,
            cwd=directory,
            env=environment,
            start_new_session=True,
            preexec_fn=_obey_ctrl_c,
            stdout=tee.stdin,
            stderr=tee.stdin,
        )
        assert tee.stdin
        tee.stdin.close()
        try:
            while process.poll() is None or (at is not None and _members(process.pid)):
                if at is None and fault is not None and when():
                    at = time.monotonic()
                    _strike(process.pid, fault)
                if at is not None and time.monotonic() > at + PATIENCE:
                    hung = True
                    _strike(process.pid, "SIGKILL")
                time.sleep(0.03)
        finally:
            if process.poll() is None:  # the drill itself is stopped
                _strike(process.pid, "SIGKILL")
    end = time.monotonic()
    with log.open("rb") as text:
        text.seek(size)
        tracebacks = text.read().decode(errors="replace").count(TRACEBACK)
    struck = at is not None and (process.returncode != 0 or hung)
    return End(struck, process.returncode, end - begun, end - (at or end), tracebacks, hung)


def _obey_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell lets its background jobs ignore it, and they pass that on


def _strike(group: int, fault: Fault) -> None:
    with suppress(ProcessLookupError):  # it has just ended
        if fault != "full disk":
            os.killpg(group, SIGNALS[fault])
            return
        for _ in range(2):  # a child of a limited process is limited too
            for member in _members(group):
                with suppress(ProcessLookupError):
                    # no file grows from now on, as on a full disk; mounting a small one would need root
                    resource.prlimit(member, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))


def _members(group: int) -> list[int]:
    """Processes of a group that have not ended."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, process_group, *_ = file.read_text().rpartition(")")[2].split()
            if int(process_group) == group and state not in "ZX":
                found.append(int(file.parent.name))
    return found
