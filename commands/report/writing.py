"""A report as one page of HTML that holds all it shows, and as Markdown with its pictures beside it."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from artifacts.provenance import commit, machine
from commands.report.content import Entry, Picture, Section, Table
from polytoken.files import write_text

TEMPLATE = Path(__file__).with_name("report.html.j2")
NOTE = "No figure that leans on the judge compares with a published one."


def write_html(output: Path, preset: str, place: Path, sections: list[Section]) -> None:
    """Write the page on the runs in ``place``, whole or not at all."""
    loader = FileSystemLoader(TEMPLATE.parent)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    page = environment.get_template(TEMPLATE.name).render(
        preset=preset,
        written=_written(),
        place=str(place),
        machine=machine(),
        commit=commit(),
        note=NOTE,
        sections=sections,
    )
    write_text(output, page)


def write_markdown(output: Path, preset: str, place: Path, sections: list[Section]) -> None:
    """Write the same as Markdown; what was drawn for it goes into ``<name>_pictures``, pictures of runs are linked."""
    drawn = output.with_name(f"{output.stem}_pictures")
    shutil.rmtree(drawn, ignore_errors=True)
    state = f", commit `{commit()}`" if commit() else ""
    lines = [f"# Polytoken: the runs of {preset}", ""]
    lines += [f"Written {_written()} from `{place}` on {machine()}{state}. {NOTE}", ""]
    for section in sections:
        lines += [f"## {section.title}", "", *([_plain(section.text), ""] if section.text else [])]
        lines += _missing(section.missing) if section.missing else []
        lines += _table(section.table) if section.table else []
        for entry in section.entries:
            lines += _entry(entry, output.parent, drawn)
    write_text(output, "\n".join(lines).rstrip() + "\n")


def _missing(commands: list[str]) -> Iterator[str]:
    yield from ("Not there yet:", "")
    yield from (f"- `{command}`" for command in commands)
    yield ""


def _entry(entry: Entry, directory: Path, drawn: Path) -> Iterator[str]:
    yield from (f"### {_plain(entry.name)}", "")
    yield from (f"- {_plain(word)}: {_plain(value)}" for word, value in entry.facts)
    if entry.config is not None:
        yield f"- configuration: [{entry.config.name}]({_link(entry.config, directory)})"
    yield ""
    for table in entry.tables:
        yield from _table(table)
    for picture in (*entry.pictures, *entry.curves):
        file = picture.path or _draw(picture, drawn)
        yield from (f"![{_plain(picture.text)}]({_link(file, directory)})", "")


def _table(table: Table) -> Iterator[str]:
    if table.caption:
        yield from (_plain(table.caption), "")
    for cells in (table.head, ["---", *["---:"] * (len(table.head) - 1)], *table.rows):
        yield f"| {' | '.join(map(_plain, cells))} |"
    yield ""


def _draw(picture: Picture, directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / f"{re.sub(r'[^a-z0-9]+', '_', picture.text.lower()).strip('_')}.svg"
    file.write_bytes(picture.content)
    return file


def _link(file: Path, directory: Path) -> str:
    return Path(os.path.relpath(file, directory)).as_posix().replace(" ", "%20")


def _plain(text: str) -> str:
    """Text that Markdown takes for nothing else."""
    return " ".join(text.replace("<", "&lt;").replace("|", "\\|").split())


def _written() -> str:
    return datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
