"""Origin of a stage: the arguments, configuration files and earlier stages that it was made from."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from artifacts.completion import Completion, Origin, completion, text_digest
from polytoken.files import file_sha256
from polytoken.layout import CHECKPOINTS


def origin_of(arguments: list[str], files: Iterable[Path], config: Any, directory: Path) -> Origin:
    """The origin of a stage that starts now.

    Args:
        arguments: Of `cli.py`.
        files: The configuration files that it reads.
        config: The resolved configuration as plain data; every path of a finished stage in it is an input.
        directory: The stage's own.
    """
    inputs: dict[str, str] = {}
    for place in dict.fromkeys(_places(config)):
        if os.path.realpath(place) != os.path.realpath(directory) and (digest := outputs(Path(place))):
            inputs[place] = digest
    return {"arguments": arguments, "configs": digests(files), "inputs": inputs}


def digests(files: Iterable[Path]) -> dict[str, str]:
    """SHA-256 of each file; an empty one for a file that is gone."""
    return {str(file): file_sha256(file) if file.is_file() else "" for file in files}


def outputs(directory: Path) -> str | None:
    """SHA-256 of what a finished stage has made; None if it is not finished."""
    return _outputs(completion(directory))


def made_again(origin: Origin) -> str | None:
    """The first input that is not the one that the stage was made from; one that is gone does not count."""
    now = ((place, digest, outputs(Path(place))) for place, digest in origin["inputs"].items())
    return next((place for place, digest, found in now if found not in (None, digest)), None)


def _outputs(done: Completion | None) -> str | None:
    return None if done is None else text_digest("\n".join(map(" ".join, sorted(done["files"].items()))))


def _places(config: Any) -> Iterator[str]:
    """Directories of stages that a configuration names: a run, a store, or the run of a file of weights."""
    if isinstance(config, dict | list):
        for value in config.values() if isinstance(config, dict) else config:
            yield from _places(value)
    elif isinstance(config, str) and "/" in config:
        with suppress(OSError, ValueError):  # too long for a path
            named = Path(config)
            weights = named.with_suffix("")  # runs/digits/teacher/mid.safetensors is of runs/digits/teacher/mid
            places = (named.parent.parent,) if named.parent.name == CHECKPOINTS else (named, weights)
            yield from (str(place) for place in dict.fromkeys(places) if place.is_dir())
