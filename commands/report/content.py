"""Content of a report, before it becomes HTML or Markdown."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from pathlib import Path

from artifacts.results import Table


@dataclass(frozen=True)
class Picture:
    """An image with its description, which is unique in the report."""

    kind: str  # image/png or image/svg+xml
    content: bytes
    text: str
    path: Path | None = None  # its file in a run; None if it was drawn for the report

    @property
    def uri(self) -> str:
        """The image as ``data:``."""
        return f"data:{self.kind};base64,{base64.b64encode(self.content).decode()}"


@dataclass
class Entry:
    """One run or one experiment."""

    name: str
    facts: list[tuple[str, str]] = field(default_factory=list)
    config: Path | None = None
    curves: list[Picture] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    metrics: dict[str, float | None] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)

    @property
    def configuration(self) -> str:
        """The configuration as YAML text."""
        return "" if self.config is None else self.config.read_text(encoding="utf-8", errors="replace")


@dataclass
class Section:
    """One stage: its runs, a table of their metrics, and the commands that make what is missing."""

    key: str  # the anchor
    title: str
    text: str
    missing: list[str] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    table: Table | None = None


def number(value: float | None) -> str:
    """Four digits, or a dash."""
    return "–" if value is None else f"{value:.4g}"
