"""A program in a forked process that is watched: time, memory, child processes, and files outside of its directory."""

from __future__ import annotations

import os
import resource
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SECONDS = 30  # of a processor; ten times as long on the clock
MEGABYTES = 512  # that it may add to its memory
LINES = 10  # of a message

CHILDREN = (
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "os.forkpty",
    "pty.spawn",
)
CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "shutil.rmtree")
NETWORK = ("socket.connect", "socket.getaddrinfo", "socket.bind", "webbrowser.open")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


@dataclass(frozen=True)
class Outcome:
    """Result of a program in the sandbox.

    Args:
        code: its exit code; minus the number of the signal that ended it.
        text: what it wrote to stderr.
        megabytes: added to its memory at most.
        violations: child processes, connections, foreign modules and files outside of its directory.
    """

    code: int
    text: str
    megabytes: int
    violations: tuple[str, ...]

    @property
    def faults(self) -> list[str]:
        """What a program does not do, whatever it reads; empty if all is well."""
        found = list(self.violations)
        if self.code in (-signal.SIGALRM, -signal.SIGXCPU):
            found.append(f"more than {SECONDS} s")
        elif self.code not in (0, 2):
            found.append(f"exit code {self.code}")
        if "Traceback (most recent call last)" in self.text:
            found.append("traceback")
        message = self.text[self.text.rfind("error: ") :].strip().splitlines() if "error: " in self.text else []
        if self.code == 2 and not 1 <= len(message) <= LINES:
            found.append(f"{len(message)} lines")
        if self.megabytes > MEGABYTES:
            found.append(f"{self.megabytes} MB")
        return found


def watched(program: Callable[[], Any], directory: Path, trusted: bool = False) -> Outcome:
    """Run a program in a fork of this process.

    Args:
        program: returns or raises as a program does.
        directory: its working directory.
        trusted: it may import any module.
    """
    said, seen = directory.with_name(f"{directory.name}.err"), directory.with_name(f"{directory.name}.seen")
    sys.stdout.flush()
    sys.stderr.flush()
    if not (process := os.fork()):
        _child(program, directory, said, seen)
    _, status, usage = os.wait4(process, 0)
    code = os.waitstatus_to_exitcode(status)
    lines = seen.read_text().splitlines() if seen.exists() else []
    before = next((int(line.removeprefix("start ")) for line in lines if line.startswith("start ")), usage.ru_maxrss)
    violations = tuple(
        dict.fromkeys(line for line in lines if not line.startswith(("start ", *(["imports "] if trusted else []))))
    )
    text = said.read_text(errors="replace") if said.exists() else ""
    for file in (said, seen):
        file.unlink(missing_ok=True)
    return Outcome(code, text, (usage.ru_maxrss - before) // 1024, violations)


def _child(program: Callable[[], Any], directory: Path, said: Path, seen: Path) -> None:
    code = 1
    try:
        descriptor = os.open(said, os.O_WRONLY | os.O_CREAT)
        os.dup2(descriptor, 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
        os.chdir(directory)
        sys.argv, sys.dont_write_bytecode = ["cli.py"], True
        os.environ["TMPDIR"] = tempfile.tempdir = str(directory / "tmp")
        note = os.open(seen, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(note, f"start {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}\n".encode())
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + (8 * MEGABYTES << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 1))
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(10 * SECONDS)  # other programs may have the processors
        sys.addaudithook(_watch(note, str(directory.resolve())))
        try:
            result = program()
            code = result if isinstance(result, int) else 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(bool(stop.code))
        sys.stderr.flush()
    except BaseException:  # as the interpreter would
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code & 0xFF)


def _watch(note: int, directory: str) -> Callable[[str, tuple[Any, ...]], None]:
    def tell(what: str) -> None:
        os.write(note, f"{what[:200].splitlines()[0]}\n".encode())

    def outside(path: Any) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):
            return False  # a descriptor, whose opening was seen
        text = os.fsdecode(path)
        place = os.path.realpath(os.path.dirname(os.path.join(directory, text)))
        return not f"{place}/".startswith(f"{directory}/") and not text.startswith(("/dev/", "/proc/self/"))

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            if (
                flags & WRITES
                and "\0" not in os.fsdecode(path if isinstance(path, str | bytes) else b"")
                and outside(path)
            ):
                tell(f"writes {path!r}")
        elif event == "import":
            if str(arguments[0]).startswith("evil"):
                tell(f"imports {arguments[0]}")
        elif event in CHANGES:
            for path in arguments[:2]:
                if outside(path):
                    tell(f"{event} {path!r}")
        elif event in NETWORK or (event in CHILDREN and not _is_describe(arguments)):
            tell(f"{event} {arguments!r}")
            raise PermissionError(f"{event} is not allowed here")

    return hook


def _is_describe(arguments: tuple[Any, ...]) -> bool:
    """True for the git command that names the commit of the code."""
    command = arguments[1] if len(arguments) > 1 else None
    return isinstance(command, list) and command[:2] == ["git", "describe"]
