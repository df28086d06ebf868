"""What an experiment came to: tables beside the paper's numbers, for a terminal, for docs and for the report."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as Grid

from experiments import directions, results
from experiments.results import Record
from experiments.runner import Task
from experiments.specification import DIRECTIONS, Experiment, Row

NOTHING = "—"
Table = dict[str, Any]  # caption, head and rows, all text


def write(file: Path, experiment: Experiment, preset: str, tasks: list[Task]) -> dict[str, Any]:
    """Write every figure as CSV, and as JSON with the tables made of them; return the latter.

    Args:
        file: the CSV; the JSON, which the report reads, stands beside it.
        experiment: whose rows.
        preset: whose runs.
        tasks: the runs.
    """
    records = results.figures(experiment, tasks)
    comparisons = directions.compare(experiment, records)
    done = len({(record["row"], record["seed"]) for record in records})
    state = f"{done} of {len(tasks)} runs of a row are done; paper: {experiment.paper.source}"
    tables = [_table(state, *cells(experiment, records))]
    tables += [_table(directions.CAPTION, *directions.cells(comparisons))] if comparisons else []
    content = {
        "experiment": experiment.name,
        "title": experiment.title,
        "preset": preset,
        "tables": tables,
        "comparisons": [asdict(comparison) for comparison in comparisons],
        "figures": records,
    }
    results.write_csv(file, records)
    results.write_json(file.with_suffix(".json"), content)
    return content


def cells(experiment: Experiment, records: list[Record]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table; the paper's columns stand beside ours, and after them those without one of ours."""
    beside = [metric.paper for metric in experiment.metrics if metric.paper]
    rest = [column for column in experiment.paper.columns if column not in beside]
    head = [""]
    for metric in experiment.metrics:
        head.append(f"{metric.label} {DIRECTIONS[metric.direction]}")
        head += [f"paper: {metric.paper}"] if metric.paper else []
    head += [*(f"paper: {column}" for column in rest), "seeds"]
    rows = []
    for row in experiment.rows:
        line = [row.label]
        for metric in experiment.metrics:
            line.append(_mean([r["value"] for r in records if (r["row"], r["metric"]) == (row.label, metric.name)]))
            line += [_paper(row, metric.paper)] if metric.paper else []
        seeds = {record["seed"] for record in records if record["row"] == row.label}
        rows.append([*line, *(_paper(row, column) for column in rest), str(len(seeds))])
    return head, rows


def rich(title: str, tables: list[Table]) -> None:
    """Print for a terminal."""
    print(title)
    for table in tables:
        grid = Grid(title=table["caption"], title_justify="left", box=SIMPLE_HEAD)
        for index, name in enumerate(table["head"]):  # in a narrow terminal, labels wrap first; no digit is cut off
            grid.add_column(name, justify="right" if index else "left", min_width=0 if index else 16, overflow="fold")
        for row in table["rows"]:
            grid.add_row(*row)
        Console().print(grid)


def markdown(tables: list[Table]) -> str:
    """The same for docs."""
    parts = []
    for number, table in enumerate(tables):
        parts += [table["caption"]] if number else []
        lines = [table["head"], ["---", *["---:"] * (len(table["head"]) - 1)], *table["rows"]]
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join(parts)


def _table(caption: str, head: list[str], rows: list[list[str]]) -> Table:
    return {"caption": caption, "head": head, "rows": rows}


def _mean(values: list) -> str:
    """Mean ± standard deviation of the sample, which one seed has not."""
    if not values:
        return NOTHING
    return f"{fmean(values):.4g}" + (f" ± {stdev(values):.2g}" if len(values) > 1 else "")


def _paper(row: Row, column: str) -> str:
    return f"{row.paper[column]:g}" if column in row.paper else NOTHING
