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
