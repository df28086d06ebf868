"""Metrics of a finished run on one screen: `python -m commands.summary RUN_DIRECTORY`."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from artifacts.run_files import METRICS, MetricsFile
from commands.metric_names import name_of, order
from commands.program import new_parser, run
from polytoken import records


def lines(metrics: dict[str, float | None]) -> Iterator[str]:
    """A line for each measured metric that is no detail, in the order of their names."""
    for key in sorted(metrics, key=order):
        name, value = name_of(key), metrics[key]
        if value is not None and not name.detail:
            yield f"  {name.title:<38}{name.text(value)} {name.unit}".rstrip()


def work(given: Namespace) -> None:
    """Print the metrics of the last validation, and the place of the pictures."""
    file = given.run / METRICS
    validated = records.read(file, MetricsFile).get("validate")
    for line in lines(validated["metrics"]) if validated else ["  not validated"]:
        print(line)
    if (picture := given.run / "reconstructions.png").exists():
        print(f"  originals, each above its reconstruction: {picture}")


def main(arguments: list[str] | None = None) -> None:
    """Run the program."""
    parser = new_parser("commands.summary", __doc__)
    parser.add_argument("run", type=Path, help="directory of a run")
    run(parser, work, arguments)


if __name__ == "__main__":
    main()
