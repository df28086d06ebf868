"""Change of each metric between rows that an experiment compares itself, and between lines of such rows."""

from __future__ import annotations

from math import exp, log
from statistics import fmean, stdev

from artifacts.results import NOTHING, Record, Table
from experiments.directions import margin_of
from experiments.specification import Experiment, Row

CAPTION = (
    "Change of the geometric mean over {units}, with its 95 % interval; * where the interval excludes 0. "
    "Both rows of a pair have the same seed"
)
SEEDS, ROWS = "the seeds", "the rows of a line (each its mean over the seeds), or over the seeds of a line of one row"
Pairs = list[tuple[float, float]]  # values before and after, at each seed that has both


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
    found = [(SEEDS, own), (ROWS, lines)]
    return [_table(experiment, records, groups, CAPTION.format(units=units)) for units, groups in found if groups]


def change(rows: list[Pairs]) -> str:
    """Change of the geometric mean in percent, with Student's 95 % interval of the mean of the logarithms.

    The seeds of a row share its tokenizer, so of several rows each counts once, with its mean. A dash without pairs, or
    if a value is not positive; no interval for one pair.
    """
    rows = [pairs for pairs in rows if pairs]
    if not rows or any(value <= 0 for pairs in rows for pair in pairs for value in pair):
        return NOTHING
    ratios = [[log(after / before) for before, after in pairs] for pairs in rows]
    if not any(map(any, ratios)):  # such as the tokenizer's metrics, of two generators on it
        return "0 %"
    units = ratios[0] if len(ratios) == 1 else [fmean(row) for row in ratios]
    mean = fmean(units)
    if len(units) < 2:
        return f"{_percent(mean)} %"
    margin = margin_of(stdev(units), len(units))
    decided = " *" if abs(mean) > margin else ""
    return f"{_percent(mean)} % ({_percent(mean - margin)} to {_percent(mean + margin)}){decided}"


def _table(
    experiment: Experiment, records: list[Record], groups: dict[tuple[str, str], list[Row]], caption: str
) -> Table:
    values = {(record.metric, record.row, record.seed): record.value for record in records}
    seeds = sorted({record.seed for record in records})
    lines = []
    for (name, against), rows in groups.items():
        columns = [[_pairs(values, metric.name, row, seeds) for row in rows] for metric in experiment.metrics]
        most = max(columns, key=_count, default=[])
        cells = [change(column) + _share(column, most) for column in columns]
        lines.append([name, against, *cells, _units(most)])
    return Table(["", "against", *(metric.label for metric in experiment.metrics), "over"], lines, caption)


def _pairs(values: dict[tuple[str, str, int], float], metric: str, row: Row, seeds: list[int]) -> Pairs:
    found = [[values.get((metric, label, seed)) for label in (row.against or "", row.label)] for seed in seeds]
    return [(before, after) for before, after in found if before is not None and after is not None]


def _count(column: list[Pairs]) -> int:
    return sum(map(len, column))


def _share(column: list[Pairs], most: list[Pairs]) -> str:
    """Pairs of a column that lacks some, such as those of a seed that has diverged."""
    return f", {_count(column)} of {_count(most)} pairs" if 0 < _count(column) < _count(most) else ""


def _units(column: list[Pairs]) -> str:
    rows = [pairs for pairs in column if pairs]
    count, unit = (len(rows), "row") if len(rows) > 1 else (_count(rows), "seed")
    return f"{count} {unit}{'' if count == 1 else 's'}"


def _percent(ratio: float) -> str:
    return f"{100 * (exp(ratio) - 1):+.1f}"
