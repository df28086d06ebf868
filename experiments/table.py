"""What an experiment came to: a table beside the paper's numbers, and a tidy file of every figure."""

from __future__ import annotations

import csv
from math import isfinite
from pathlib import Path
from statistics import fmean, stdev

from rich.console import Console
from rich.table import Table

from experiments.runner import Task
from experiments.runs import figure
from experiments.specification import DIRECTIONS, Experiment, Row

COLUMNS = ("experiment", "row", "seed", "metric", "value", "n", "run")
NOTHING = "—"


def figures(experiment: Experiment, tasks: list[Task]) -> list[dict[str, object]]:
    """Every metric of every finished task, one record each; a metric that a run lacks has none.

    A task is finished when all its stages are. A metric is that of the last stage which has one of this name; `run` is
    the directory of that stage, and `n` the number of images it was measured on, where the run says it.
    """
    records: list[dict[str, object]] = []
    for task in tasks:
        if any(run.state() != "done" for run in task.runs):
            continue  # or stage 1 would speak for stage 2
        for metric in experiment.metrics:
            measured = [(run, figure(run.metrics() or {}, metric.name)) for run in task.runs]
            run, value = next((pair for pair in reversed(measured) if pair[1] is not None), (None, None))
            if run is not None and value is not None and isfinite(value):
                where = (experiment.name, task.row.label, task.seed, metric.name, value, run.images())
                records.append(dict(zip(COLUMNS, (*where, str(run.directory)), strict=True)))
    return records


def write_csv(path: Path, records: list[dict[str, object]]) -> None:
    """Write the records as a tidy table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(records)


def cells(experiment: Experiment, records: list[dict[str, object]]) -> tuple[list[str], list[list[str]]]:
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


def rich(title: str, head: list[str], rows: list[list[str]]) -> None:
    """Print for a terminal."""
    table = Table(title=title)
    for index, name in enumerate(head):
        table.add_column(name, justify="right" if index else "left", no_wrap=index == 0)
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """The same for docs."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _mean(values: list) -> str:
    """Mean ± standard deviation of the sample, which one seed has not."""
    if not values:
        return NOTHING
    return f"{fmean(values):.4g}" + (f" ± {stdev(values):.2g}" if len(values) > 1 else "")


def _paper(row: Row, column: str) -> str:
    return f"{row.paper[column]:g}" if column in row.paper else NOTHING
