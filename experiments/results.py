"""The figures of an experiment: one record each, and the files that keep them."""

from __future__ import annotations

import csv
import io
import json
from math import isfinite
from pathlib import Path
from typing import Any

from experiments import files
from experiments.runner import Task
from experiments.runs import figure
from experiments.specification import Experiment

COLUMNS = ("experiment", "row", "seed", "metric", "value", "n", "protocol", "run", "commit", "machine")
Record = dict[str, Any]  # by column


def figures(experiment: Experiment, tasks: list[Task]) -> list[Record]:
    """Every metric of every finished task, one record each; a metric that a run lacks has none.

    A task is finished when all its stages are. A metric is that of the last stage which has one of this name; `run` is
    the directory of that stage, and what else stands beside the value is None where the run does not say it.
    """
    records: list[Record] = []
    for task in tasks:
        if any(run.state() != "done" for run in task.runs):
            continue  # or stage 1 would speak for stage 2
        for metric in experiment.metrics:
            measured = [(run, figure(run.metrics() or {}, metric.name)) for run in task.runs]
            run, value = next((pair for pair in reversed(measured) if pair[1] is not None), (None, None))
            if run is not None and value is not None and isfinite(value):
                found = {
                    **{"experiment": experiment.name, "row": task.row.label, "seed": task.seed},
                    **{"metric": metric.name, "value": value, "run": str(run.directory), **run.origin()},
                }
                records.append({column: found[column] for column in COLUMNS})
    return records


def write_csv(path: Path, records: list[Record]) -> None:
    """Write the records as a tidy table."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    files.write(path, text.getvalue())


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write the records, and what is made of them, as JSON."""
    files.write(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
