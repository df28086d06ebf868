"""Report on all runs of a preset: `python -m commands.report --preset digits` writes runs/digits/report.html.

The page contains all curves and pictures and loads nothing else; report.md next to it has the same content. Both show
what exists, and name the make target of what is missing.
"""

from __future__ import annotations

import os
import re
import shutil
from argparse import Namespace
from datetime import datetime
from itertools import count
from pathlib import Path
from urllib.parse import quote

from artifacts.completion import text_digest
from artifacts.provenance import commit, machine
from commands.program import new_parser, run
from commands.report import experiments, stages
from commands.report.card import card
from commands.report.content import Picture, take_shared
from commands.report.runs import short
from commands.report.templates import templates
from polytoken.errors import MissingFileError, UserError
from polytoken.files import is_file_name, write_bytes, write_text

LONGEST_SLUG = 80  # characters


def write(page: Path, directory: Path, preset: str) -> None:
    """Write the report on the runs in ``directory`` (runs/<preset>) and on the experiments next to it.

    Args:
        page: the HTML; the Markdown is next to it. Pictures drawn for the latter go to ``<name>_pictures``.
        directory: the preset's runs.
        preset: its name.
    """
    results = experiments.read(directory.parent / "experiments" / "results", preset)
    *trained, teachers = stages.sections(directory, preset)
    done, missing = experiments.tables(results, preset)
    sections = [
        stages.samples(directory / "samples", preset),
        *trained,
        *([done] if done.entries else []),
        *experiments.discrepancy(results),
        teachers,
        missing,
    ]
    numbers = count(1)
    content = {
        "preset": preset,
        "place": str(directory),
        "written": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        "card": card(directory),
        "shared": take_shared(entry for section in sections for entry in section.entries),
        "here": [("machine", machine()), *([("commit", short(of_code))] if (of_code := commit()) else [])],
        "sections": sections,
        "next_number": lambda: next(numbers),
    }
    drawn = page.with_name(f"{page.stem}_pictures")
    shutil.rmtree(drawn, ignore_errors=True)

    def link(target: Picture | Path) -> str:
        file = target.path if isinstance(target, Picture) else target
        if file is None:
            # the digest tells texts apart that have one slug; file systems limit the length of a name
            slug = re.sub(r"[^a-z0-9]+", "_", target.text.lower()).strip("_")[:LONGEST_SLUG]
            file = drawn / f"{slug}_{text_digest(target.text)[:8]}.svg"
            write_bytes(file, target.content)
        return quote(os.fsencode(Path(os.path.relpath(file, page.parent)).as_posix()))

    environment = templates()
    environment.filters["link"] = link
    for file in (page.with_suffix(".md"), page):
        write_text(file, environment.get_template(f"report{file.suffix}.j2").render(content))


def _work(options: Namespace) -> None:
    if not is_file_name(options.preset):
        raise UserError(f"--preset is {options.preset!r}: name a directory of {options.runs}")
    directory = options.runs / options.preset
    if not directory.is_dir():
        raise MissingFileError(f"there are no runs in {directory}: make demo PRESET={options.preset} makes them")
    page = options.output or directory / "report.html"
    write(page, directory, options.preset)
    print(f"{page}\n{page.with_suffix('.md')}")


def main(arguments: list[str] | None = None) -> None:
    """Write both files and print their paths."""
    parser = new_parser("commands.report", __doc__)
    parser.add_argument("--preset", default="digits", help="preset of the runs (default: %(default)s)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="root of all runs (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="the page (default: report.html in the preset's runs)")
    run(parser, _work, arguments)


if __name__ == "__main__":
    main()
