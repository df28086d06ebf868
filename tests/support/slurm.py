"""Fake SLURM programs that record their arguments."""

import os
from pathlib import Path

import pytest


class FakeSlurm:
    """Puts programs on PATH; :meth:`calls` returns their arguments."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = directory
        directory.mkdir()
        self._log = directory / "calls"
        monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")

    def program(self, name: str, prints: str = "", fails: str | None = None) -> None:
        """A program that prints a text, or fails with one."""
        end = f"printf '%s\\n' '{fails}' >&2; exit 1" if fails else f"printf '%s\\n' '{prints}'"
        path = self.directory / name
        path.write_text(f"#!/bin/sh\nprintf '%s\\n' \"{name} $*\" >> {self._log}\n{end}\n")
        path.chmod(0o755)

    def calls(self) -> list[str]:
        return self._log.read_text().splitlines() if self._log.exists() else []
