"""A short fuzz without trained runs, and the sandbox: it notices what a program must not do. `make fuzz` runs all."""

import os
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuzz import corpus, sandbox
from tests.fuzz.__main__ import fuzz, table


def test_mutated_files_end_in_a_sentence(tmp_path: Path) -> None:
    corpus.make(tmp_path / "corpus", trained=False)
    kinds = [kind for kind in corpus.quick() if any((tmp_path / "corpus").glob(kind.files))]
    assert len(kinds) > 10
    results = list(fuzz(tmp_path, range(60), seed=1, jobs=1, seconds=30, kinds=kinds))
    assert not [(result.number, result.what, result.outcome) for result in results if result.outcome.faults]
    assert {result.outcome.code for result in results} == {0, 2}
    assert table(results).splitlines()[-1].endswith("| 0 |")
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
    monkeypatch.setattr(sandbox, "SECONDS", 1)
    (tmp_path / "run").mkdir()
    assert any(what in fault for fault in sandbox.watched(PROGRAMS[what], tmp_path / "run").faults)


def test_the_sandbox_lets_a_program_work(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    assert sandbox.watched(lambda: Path("inside").write_text("x") and 0, tmp_path / "run").faults == []
    assert (tmp_path / "run/inside").exists()
