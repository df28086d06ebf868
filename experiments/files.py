"""Files that a reader finds old or new, never half-written, whoever writes them at the same time."""

from pathlib import Path

from polytoken.files import write_text


def write(path: Path, text: str) -> None:
    """Write a text file, and its directory if it is missing; one that says the same already is left alone."""
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return
    write_text(path, text)
