"""Results of an experiment: its table with the paper's numbers, for a terminal, for docs and for the report."""

from __future__ import annotations

import csv
import io
from math import isfinite
from pathlib import Path
from statistics import fmean, stdev

import msgspec
from rich.box import SIMPLE_HEAD
from rich.table import Table as Grid

from artifacts.display import plain_console
from artifacts.results import NOTHING, Record, Results, Table
from experiments import contrasts, directions
from experiments.specification import Experiment, Row
from experiments.tasks import Task, mean_of
from polytoken import records
from polytoken.files import write_text

ARROWS = {"up": " ↑", "down": " ↓", None: ""}


def results(experiment: Experiment, tasks: list[Task]) -> Results:
    """Every metric of the finished tasks, and the tables made of them."""
    made = collect(experiment, tasks)
    comparisons = directions.compare(experiment, made)
    done = len({(record.row, record.seed) for record in made})
    caption = f"{done} of {len(tasks)} runs of a row are done; paper: {experiment.paper.source}"
    commits = sorted({record.commit for record in made if record.commit})
    caption += f"; measured at several commits: {', '.join(commits)}" if len(commits) > 1 else ""
    tables = [_table(experiment, made, caption)]
    tables += [directions.table(comparisons)] if comparisons else []
    tables += contrasts.tables(experiment, made)
    return Results(experiment.name, experiment.title, experiment.preset, tables, comparisons, made)


def collect(experiment: Experiment, tasks: list[Task]) -> list[Record]:
    """One record for each metric of each finished task; a metric that a run lacks, or that is not finite, has none.

    A metric that several stages of a row have is that of the last one.
    """
    made: list[Record] = []
    for task in tasks:
        if task.missing:
            continue  # otherwise stage 1 would count as stage 2
        for metric in experiment.metrics:
            found = [(run, mean_of(run.metrics(), metric.name)) for run in task.runs]
            run, value = next((pair for pair in reversed(found) if pair[1] is not None), (None, None))
            if run is not None and value is not None and isfinite(value):
                record = Record(
                    experiment=experiment.name,
                    row=task.row.label,
                    seed=task.seed,
                    metric=metric.name,
                    value=100 * value if metric.percent else value,
                    run=str(run.directory),
                    **run.origin(),
                )
                made.append(record)
    return made


def write(path: Path, found: Results) -> None:
    """Write the records as CSV, and everything as JSON with the same name."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, Record.__struct_fields__, lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(msgspec.structs.asdict, found.records))
    write_text(path, text.getvalue())
    records.write(path.with_suffix(".json"), found)


def show(title: str, tables: list[Table]) -> None:
    """Print for a terminal."""
    print(title)
    for table in tables:
        grid = Grid(title=table.caption, title_justify="left", box=SIMPLE_HEAD)
        for index, name in enumerate(table.head):  # in a narrow terminal, labels wrap first; no digit is cut off
            grid.add_column(name, justify="right" if index else "left", min_width=0 if index else 16, overflow="fold")
        for row in table.rows:
            grid.add_row(*row)
        plain_console().print(grid)


def markdown(tables: list[Table]) -> str:
    """Text for docs; the first caption is left out."""
    parts = []
    for number, table in enumerate(tables):
        parts += [table.caption] if number else []
        lines = [table.head, ["---", *["---:"] * (len(table.head) - 1)], *table.rows]
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join(parts)


def _table(experiment: Experiment, found: list[Record], caption: str) -> Table:
    """A column a metric, followed by the paper's; then the paper's columns that correspond to no metric."""
    metrics, used = experiment.metrics, {metric.paper for metric in experiment.metrics}
    rest = [column for column in experiment.paper.columns if column not in used]
    head = [""]
    for metric in metrics:
        head += [f"{metric.label}{ARROWS[metric.direction]}"]
        head += [f"paper: {metric.paper}"] if metric.paper else []
    head += [*(f"paper: {column}" for column in rest), "seeds"]
    rows = []
    for row in experiment.rows:
        own = [record for record in found if record.row == row.label]
        seeds = len({record.seed for record in own})
        line = [row.label]
        for metric in metrics:
            line += [_mean([record.value for record in own if record.metric == metric.name], seeds)]
            line += [_paper(row, metric.paper)] if metric.paper else []
        rows.append([*line, *(_paper(row, column) for column in rest), str(seeds)])
    return Table(head, rows, caption)


def _mean(values: list[float], seeds: int) -> str:
    """Mean ± sample standard deviation (omitted for a single value), and how many seeds have one if some lack it."""
    if not values:
        return NOTHING
    text = f"{fmean(values):.4g}" + (f" ± {stdev(values):.2g}" if len(values) > 1 else "")
    return text if len(values) == seeds else f"{text} ({len(values)} of {seeds})"


def _paper(row: Row, column: str) -> str:
    return f"{row.paper[column]:g}" if column in row.paper else NOTHING
