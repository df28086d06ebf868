"""Files that a reader finds old or new, never half-written, whoever writes them at the same time."""

import os
import tempfile
from pathlib import Path


def write(path: Path, text: str) -> None:
    """Write a text file, and its directory if it is missing; one that says the same already is left alone."""
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, unfinished = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.", suffix=".part")
    with open(descriptor, "w", encoding="utf-8") as file:
        os.fchmod(descriptor, 0o644)
        file.write(text)
    Path(unfinished).replace(path)
