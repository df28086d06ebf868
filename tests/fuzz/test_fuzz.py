"""A short fuzz without trained runs, and the sandbox: it notices what a program must not do. `make fuzz` runs all."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuzz import sandbox
from tests.support.commands import REPOSITORY


@pytest.mark.slow
def test_mutated_files_end_in_a_sentence(tmp_path: Path) -> None:
    """In a process of its own: a program that hangs fails this test, and nothing else."""
    options = ("--quick", "--mutations", "16", "--seed", "1", "--jobs", "1", "--directory", str(tmp_path))
    command = [sys.executable, "-m", "tests.fuzz", *options]
    with subprocess.Popen(
        command, cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    ) as process:
        try:
            said, _ = process.communicate(timeout=400)  # longer than the sandbox lets one program wait
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            pytest.fail(f"not at an end after 400 s:\n{process.communicate()[0]}")
    assert process.returncode == 0, said
    kinds = [line for line in said.splitlines() if line.startswith("| ")][1:]
    name, mutations, fine, refused, *others = (cell.strip() for cell in kinds.pop().strip("|").split("|"))
    assert len(kinds) > 10 and (name, mutations, others[0], others[-1]) == ("all", "16", "0", "0"), said
    assert int(fine) > 0 and int(refused) > 0, said
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]


def connects() -> None:
    socket.create_connection(("127.0.0.1", 9), 1)


PROGRAMS: dict[str, Callable[[], object]] = {
    "writes": lambda: Path("../outside").touch(),
    "os.mkdir": lambda: Path("../outside").mkdir(),
    "subprocess.Popen": lambda: subprocess.run(["true"], check=True),
    "os.system": lambda: os.system("true"),
    "socket.getaddrinfo": connects,
    "imports evil_module": lambda: __import__("evil_module"),
    "MB": lambda: bytearray(700 << 20),
    "traceback": lambda: 1 / 0,
    "exit code 3": lambda: 3,
    "0 lines": lambda: 2,
    "more than 1 s": lambda: [time.process_time() for _ in range(10**9)],
}


@pytest.mark.parametrize("what", PROGRAMS)
def test_the_sandbox_notices(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if what == "more than 1 s":  # the others may take longer on a busy machine, such as 700 MB of new pages
        monkeypatch.setattr(sandbox, "SECONDS", 1)
    (tmp_path / "run").mkdir()
    assert any(what in fault for fault in sandbox.watched(PROGRAMS[what], tmp_path / "run").faults)


def test_the_sandbox_lets_a_program_work(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    assert sandbox.watched(lambda: Path("inside").write_text("x") and 0, tmp_path / "run").faults == []
    assert (tmp_path / "run/inside").exists()
