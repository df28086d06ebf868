"""What a report is made of, before it is HTML or Markdown."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Picture:
    """An image.

    Args:
        kind: ``image/png`` or ``image/svg+xml``.
        content: its bytes.
        text: what it shows; no two of a report are alike.
        path: its file, if a run has it; None if it was drawn for the report.
    """

    kind: str
    content: bytes
    text: str
    path: Path | None = None

    @property
    def uri(self) -> str:
        """The image itself as ``data:``."""
        return f"data:{self.kind};base64,{base64.b64encode(self.content).decode()}"


@dataclass(frozen=True)
class Table:
    """Rows of text under a head; the first column names the row, the caption the table."""

    head: list[str]
    rows: list[list[str]]
    caption: str = ""


@dataclass
class Entry:
    """What is known of one run, or of one experiment.

    Args:
        name: the run's directory below the stage's, or the experiment's title.
        facts: pairs of a word and a value.
        config: the file of its configuration, if it is kept.
        curves: one a group of logged values.
        pictures: drawn by its callbacks.
        metrics: by name.
        tables: measured after it, by a sweep or by probes; of an experiment, all of it.
    """

    name: str
    facts: list[tuple[str, str]] = field(default_factory=list)
    config: Path | None = None
    curves: list[Picture] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    metrics: dict[str, float | None] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)

    @property
    def configuration(self) -> str:
        """Its configuration as YAML text."""
        return "" if self.config is None else self.config.read_text(encoding="utf-8")


@dataclass
class Section:
    """One stage: its runs and their figures side by side, or what makes them.

    Args:
        key: its anchor.
        title: its heading.
        text: what is to be seen there.
        missing: commands that make what is not there yet.
        entries: runs or experiments.
        table: of all of them.
    """

    key: str
    title: str
    text: str
    missing: list[str] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    table: Table | None = None


def number(value: float | None) -> str:
    """Four digits, or a dash."""
    return "–" if value is None else f"{value:.4g}"
