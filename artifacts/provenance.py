"""Machine, commit and library versions of a measurement."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch


def machine() -> str:
    """The system, its cores and its GPUs, in words."""
    words = [f"{platform.system()} {platform.machine()}", f"{os.cpu_count()} cores"]
    if torch.cuda.is_available():
        words.append(f"{torch.cuda.device_count()} × {torch.cuda.get_device_name()}")
    return ", ".join(words)


def versions(*packages: str) -> dict[str, str]:
    """Versions of Python and of installed packages."""
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def commit() -> str | None:
    """The commit of this code, with `-dirty` if tracked files were changed; None outside of a git repository."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
