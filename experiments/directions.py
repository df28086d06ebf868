"""Direction of the change from row to row, compared with the paper: holds, fails, or within noise."""

from __future__ import annotations

from itertools import pairwise
from math import sqrt
from statistics import fmean, stdev

from scipy.special import stdtrit

from artifacts.results import Record, RowComparison, Table
from experiments.specification import Experiment

CONFIDENCE = 0.95
CAPTION = (
    "Does the change from the previous row (the nearest above that the paper also reports) have the paper's sign? "
    "Mean difference over the seeds ± half of its 95 % interval, both rows with the same seed"
)
HEAD = ["", "against", "of", "difference", "paper", "direction"]


def compare(experiment: Experiment, records: list[Record]) -> list[RowComparison]:
    """All comparisons that the paper has numbers for and our runs a common seed; in the order of the columns."""
    made = []
    for metric in experiment.metrics:
        values = {(record.row, record.seed): record.value for record in records if record.metric == metric.name}
        seeds = sorted({seed for _, seed in values})
        reported = [(row.label, row.paper[metric.paper]) for row in experiment.rows if metric.paper in row.paper]
        for (against, paper_before), (row, paper) in pairwise(reported):
            pairs = [
                (values[against, seed], values[row, seed])
                for seed in seeds
                if (row, seed) in values and (against, seed) in values
            ]
            differences = [after - before for before, after in pairs]
            change = paper - paper_before
            if change and differences:
                mean, margin = fmean(differences), _margin(differences)
                verdict = _verdict(mean, margin, change)
                base = fmean(before for before, _ in pairs)
                made.append(
                    RowComparison(
                        row,
                        against,
                        metric.name,
                        metric.label,
                        len(differences),
                        mean,
                        margin,
                        change,
                        verdict,
                        base,
                        paper_before,
                    )
                )
    return made


def table(comparisons: list[RowComparison]) -> Table:
    """The comparisons as text."""
    rows = []
    for one in comparisons:
        margin = "" if one.margin is None else f" ± {one.margin:.2g}"
        difference, paper = f"{one.difference:+.3g}{margin}", f"{one.paper:+.3g}"
        rows.append([one.row, one.against, one.label, difference, paper, one.verdict])
    return Table(HEAD, rows, CAPTION)


def margin_of(deviation: float, count: int) -> float:
    """Half the width of Student's interval of the mean of `count` differences with this sample deviation."""
    return float(stdtrit(count - 1, (1 + CONFIDENCE) / 2)) * deviation / sqrt(count)


def _margin(differences: list[float]) -> float | None:
    return margin_of(stdev(differences), len(differences)) if len(differences) > 1 else None


def _verdict(mean: float, margin: float | None, paper: float) -> str:
    if margin is None:
        return "one seed"
    if abs(mean) <= margin:
        return "within noise"
    return "holds" if mean * paper > 0 else "fails"
