"""Change of each metric between rows that an experiment compares itself, and between lines of such rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import exp, log
from statistics import fmean, stdev

from artifacts.results import NOTHING, Record, Table
from experiments.directions import margin_of
from experiments.specification import Experiment, Row

CAPTION = (
    "Change of the geometric mean over {pairs}, with its 95 % interval; * where the interval excludes 0. "
    "Both rows of a pair have the same seed"
)
Pairs = list[tuple[float, float]]  # value before and after, at one seed


def tables(experiment: Experiment, records: list[Record]) -> list[Table]:
    """One table of the rows with `against`, and one of their lines; rows with a line are in the second only."""
    by_label = {row.label: row for row in experiment.rows}
    own: dict[tuple[str, str], list[Row]] = {}
    lines: dict[tuple[str, str], list[Row]] = {}
    for row in experiment.rows:
        if row.against in by_label:  # not every preset runs every row
            names = (row.line, by_label[row.against].line)
            if names[0] is None or names[1] is None:
                own[row.label, row.against] = [row]
            else:
                lines.setdefault((names[0], names[1]), []).append(row)
    found = [("seeds", own), ("tokenizers and seeds", lines)]
    return [_table(experiment, records, groups, CAPTION.format(pairs=pairs)) for pairs, groups in found if groups]


def change(pairs: Pairs) -> str:
    """Change of the geometric mean in percent, with Student's 95 % interval of the mean of the logarithms.

    A dash without pairs, or if a value is not positive; no interval for one pair.
    """
    if not pairs or any(value <= 0 for pair in pairs for value in pair):
        return NOTHING
    ratios = [log(after / before) for before, after in pairs]
    if not any(ratios):  # such as the tokenizer's metrics, of two generators on it
        return "0 %"
    mean = fmean(ratios)
    if len(ratios) < 2:
        return f"{_percent(mean)} %"
    margin = margin_of(stdev(ratios), len(ratios))
    decided = " *" if abs(mean) > margin else ""
    return f"{_percent(mean)} % ({_percent(mean - margin)} to {_percent(mean + margin)}){decided}"


def _table(
    experiment: Experiment, records: list[Record], groups: dict[tuple[str, str], list[Row]], caption: str
) -> Table:
    values = {(record.metric, record.row, record.seed): record.value for record in records}
    seeds = sorted({record.seed for record in records})
    lines = []
    for (name, against), rows in groups.items():
        columns = [list(_pairs(values, metric.name, rows, seeds)) for metric in experiment.metrics]
        lines.append([name, against, *map(change, columns), str(max(map(len, columns), default=0))])
    return Table(["", "against", *(metric.label for metric in experiment.metrics), "pairs"], lines, caption)


def _pairs(
    values: dict[tuple[str, str, int], float], metric: str, rows: Iterable[Row], seeds: Iterable[int]
) -> Iterator[tuple[float, float]]:
    for row in rows:
        for seed in seeds:
            before, after = (values.get((metric, label, seed)) for label in (row.against or "", row.label))
            if before is not None and after is not None:
                yield before, after


def _percent(ratio: float) -> str:
    return f"{100 * (exp(ratio) - 1):+.1f}"
