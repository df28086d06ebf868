"""`done.json`: the marker of a finished stage, which its program writes last.

A stage is finished if its directory has this file, and the files that it lists exist. `make`, the experiments and
everything else that asks whether a stage is finished read the marker and nothing else. A stage that starts again
removes it. This module does not import torch: that would cost each stage of an experiment seconds.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NotRequired, Protocol, TypedDict, runtime_checkable

from polytoken import records
from polytoken.files import file_sha256, sync

DONE = "done.json"


class Origin(TypedDict):
    """Arguments, configuration files and inputs of a run of `cli.py` (artifacts.origin)."""

    arguments: list[str]  # of its last start
    configs: dict[str, str]  # SHA-256 of each configuration file
    inputs: dict[str, str]  # digest of the files of each finished stage that the configuration names


class Completion(TypedDict):
    """`done.json`."""

    command: str  # fit, predict, or a program of an experiment
    step: NotRequired[int]  # optimizer steps of a fit
    config: str  # SHA-256 of the configuration, or of the arguments of a program
    files: dict[str, str]  # SHA-256 of each file that later stages read, by its path from the directory
    origin: NotRequired[Origin]


@runtime_checkable
class Producer(Protocol):
    """A module or callback whose files are read by later stages."""

    def deliver(self) -> list[Path]:
        """Write what waits for the end of the stage, and return all files; called on rank 0 only."""


def begin(directory: Path) -> None:
    """Remove the marker, durably: a power cut must not bring it back."""
    if (directory / DONE).exists():
        (directory / DONE).unlink()
        sync(directory)


def finish(
    directory: Path,
    command: str,
    config: str,
    files: Iterable[Path],
    step: int | None = None,
    origin: Origin | None = None,
) -> bool:
    """Write the marker, unless there are no files or one is missing; returns whether it was written.

    Args:
        directory: Directory of the stage.
        command: What has ended.
        config: The configuration as text.
        files: All files that later stages read; a directory stands for the files in it.
        step: Optimizer steps of a fit.
        origin: Arguments, configuration files and inputs of a run of `cli.py`.
    """
    digests: dict[str, str] = {}
    for place in files:
        if not place.exists():
            return False
        for file in sorted(path for path in place.rglob("*") if path.is_file()) if place.is_dir() else [place]:
            digests[os.path.relpath(file, directory)] = file_sha256(file)
    if not digests:
        return False
    content: Completion = {"command": command, "config": text_digest(config), "files": digests}
    if step is not None:
        content["step"] = step
    if origin is not None:
        content["origin"] = origin
    records.write(directory / DONE, content)
    return True


def text_digest(text: str) -> str:
    """SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def completion(directory: Path) -> Completion | None:
    """The marker of a finished stage; None for an unfinished one. A broken marker is set aside with a warning."""
    content = records.read_derived(directory / DONE, Completion)
    return content if content and all((directory / file).exists() for file in content["files"]) else None


def changed(directory: Path, content: Completion) -> list[Path]:
    """The files of a finished stage that are no longer as its program left them; reads all of them."""
    return [directory / file for file, digest in content["files"].items() if file_sha256(directory / file) != digest]
