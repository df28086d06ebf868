"""Calls of the command line."""

import os
import subprocess
import sys
from pathlib import Path

import cli

REPOSITORY = Path(cli.__file__).resolve().parent
TOY = str(REPOSITORY / "tests" / "support" / "toy.yaml")


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
        [sys.executable, str(REPOSITORY / "cli.py"), *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
