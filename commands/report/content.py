"""Content of a report, before it becomes HTML or Markdown."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from artifacts.results import Table

Facts = list[tuple[str, str]]
SHARED = ("versions", "machine", "commit")  # facts that belong at the end of the page if all runs agree


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


@dataclass(frozen=True)
class Number:
    """A number of the card, with its unit and the direction that is better."""

    title: str
    value: str
    unit: str = ""
    better: str = ""
    note: str = ""

    @property
    def direction(self) -> str:
        """The arrow in words."""
        return {"↑": "higher is better", "↓": "lower is better"}.get(self.better, "")


@dataclass
class Card:
    """First section of the page: samples, reconstructions, some metrics, time and hardware."""

    title: str
    pictures: list[Picture] = field(default_factory=list)
    numbers: list[Number] = field(default_factory=list)
    facts: Facts = field(default_factory=list)


@dataclass
class Entry:
    """One run or one experiment."""

    name: str
    facts: Facts = field(default_factory=list)
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
    """One stage: its runs, tables of their metrics, and the commands that make what is missing."""

    key: str  # the anchor
    title: str
    text: str = ""
    missing: list[str] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    details: list[Table] = field(default_factory=list)  # folded
    pictures: list[Picture] = field(default_factory=list)
    folded: bool = False


def take_shared(entries: Iterable[Entry]) -> Facts:
    """Remove the facts in which all entries agree, and return them once. Programs record different packages."""
    entries = list(entries)
    shared: Facts = []
    for word in SHARED:
        values = dict.fromkeys(value for entry in entries for name, value in entry.facts if name == word)
        if word == "versions":
            packages = dict.fromkeys(package for value in values for package in value.split(", "))
            names = [package.partition(" ")[0] for package in packages]
            values = {", ".join(packages): None} if values and len(set(names)) == len(names) else values
        if len(values) == 1:
            shared.append((word, next(iter(values))))
            for entry in entries:
                entry.facts = [fact for fact in entry.facts if fact[0] != word]
    return shared


def number(value: float | None) -> str:
    """Four digits, or a dash."""
    return "–" if value is None else f"{value:.4g}"
