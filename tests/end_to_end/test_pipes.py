"""A named pipe in place of a file is refused at once: whoever opens it would wait for a writer."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from artifacts import yaml_files
from artifacts.reference import Reference
from artifacts.samples import SamplesFile
from commands.cli.runs import resolve_checkpoint
from polytoken import records
from polytoken.errors import UserError
from polytoken.files import file_sha256
from polytoken.loading import Checkpoint
from polytoken.weights import load_state

READERS: dict[str, Callable[[Path], Any]] = {
    "metrics.json": lambda path: records.read(path, dict),
    "config.yaml": yaml_files.read,
    "judge.safetensors": lambda path: load_state(path, "make teacher"),
    "vgg16.pth": lambda path: load_state(path, "make weights"),
    "last.ckpt": Checkpoint.open,
    "best.ckpt": lambda path: resolve_checkpoint(str(path), None, "fit"),
    "samples.npz": SamplesFile,
    "reference.npz": Reference.read,
    "any": file_sha256,
}


@pytest.mark.parametrize("name", READERS)
def test_a_pipe_is_refused(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match=f"{name} .*it is a pipe, and no file|no .* at .*/{name}"):
        READERS[name](tmp_path / name)
