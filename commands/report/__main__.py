"""One page on all runs of a preset: `python -m commands.report --preset digits` writes runs/digits/report.html.

The page holds everything it shows, curves and pictures included, and loads nothing from elsewhere; report.md beside it
says the same. Both read what is there, and say of the rest which make target makes it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from commands.report import experiments, runs, writing
from commands.report.content import Section


def sections(directory: Path, preset: str) -> list[Section]:
    """All that is to be told of the runs in ``directory`` (runs/<preset>), and of the experiments beside it."""
    results = experiments.read(directory.parent / "experiments" / "results", preset)
    return [
        *runs.stages(directory, preset),
        runs.samples(directory / "samples", preset),
        experiments.tables(results, preset),
        experiments.discrepancy(results),
    ]


def main(arguments: list[str] | None = None) -> None:
    """Write both and say where they are."""
    description = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m commands.report", description=description)
    parser.add_argument("--preset", default="digits", help="whose runs")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="root of all runs")
    parser.add_argument("--output", type=Path, help="the page; by default report.html beside the preset's runs")
    options = parser.parse_args(arguments)
    directory = options.runs / options.preset
    if not directory.is_dir():
        sys.exit(f"error: there are no runs in {directory}: make demo PRESET={options.preset} makes them")
    page = options.output or directory / "report.html"
    told = sections(directory, options.preset)
    writing.write_markdown(page.with_suffix(".md"), options.preset, directory, told)
    writing.write_html(page, options.preset, directory, told)
    print(f"{page}\n{page.with_suffix('.md')}")


if __name__ == "__main__":
    main()
