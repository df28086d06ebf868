"""Calls of the command line."""

import multiprocessing
import os
import runpy
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

import cli

REPOSITORY = Path(cli.__file__).resolve().parent
TOY = str(REPOSITORY / "tests" / "support" / "toy.yaml")
PROGRAM = str(REPOSITORY / "cli.py")
SECONDS = 300

PROCESSES = multiprocessing.get_context("forkserver")  # its server has imported the libraries (tests/conftest.py)


def go_to(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a folder, as `cli.py` outside of SLURM."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.argv", ["cli.py"])
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)


def exit_code(*arguments: str) -> int:
    """Run a command in this process, to save ten seconds of imports."""
    try:
        cli.main(list(arguments))
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def without_make() -> dict[str, str]:
    """The environment, without the variables of a make that runs the tests."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "ARGS"))}


def make(*arguments: str, cwd: Path = REPOSITORY) -> str:
    """Output of make, with the environment of Python counted as up to date."""
    command = ["make", "--no-print-directory", "-o", ".venv/.ready", *arguments]
    try:
        return subprocess.run(command, cwd=cwd, env=without_make(), check=True, capture_output=True, text=True).stdout
    except subprocess.CalledProcessError as error:
        error.add_note(error.stderr)
        raise


def program(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    """Run a command as a user does."""
    return subprocess.run(
        [sys.executable, PROGRAM, *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )


def forked(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    """Run a command in a process of its own, which may be killed, without ten seconds of imports."""
    with TemporaryDirectory() as place:
        outputs = [Path(place, name) for name in ("stdout", "stderr")]
        process = PROCESSES.Process(target=_run, args=(arguments, cwd, {**os.environ, **environment}, outputs))
        process.start()
        process.join(SECONDS)
        code = process.exitcode
        process.kill()
        said, errors = (output.read_text() for output in outputs)
    assert code is not None, f"not at an end after {SECONDS} s:\n{errors}"
    return subprocess.CompletedProcess([PROGRAM, *arguments], code, said, errors)


def _run(arguments: tuple[str, ...], cwd: Path, environment: dict[str, str], outputs: list[Path]) -> None:
    for descriptor, output in enumerate(outputs, start=1):
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT), descriptor)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    # as in a new program; workers of another server would outlive a killed one
    multiprocessing.set_start_method(None, force=True)
    sys.argv = [PROGRAM, *arguments]
    runpy.run_path(PROGRAM, run_name="__main__")
