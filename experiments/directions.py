"""Whether a row differs from the one before it as the paper says: holds, fails, or within noise."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import sqrt
from statistics import fmean, stdev

from scipy.special import stdtrit

from experiments.results import Record
from experiments.specification import Experiment, Row

CONFIDENCE = 0.95
CAPTION = (
    "Does a row differ from the nearest one above it with a number of the paper as the paper says? "
    "Mean difference over the seeds ± half of its 95 % interval, both rows with the same seed"
)
HEAD = ("", "against", "of", "difference", "paper", "direction")


@dataclass(frozen=True)
class Comparison:
    """One row against another, by one metric.

    Args:
        row: label of the row.
        against: label of the nearest row before it of which the paper has this number too.
        metric: name of ours.
        label: its column's head.
        seeds: how many both rows have.
        difference: mean over the seeds of the row's value less the other's of the same seed.
        margin: half the width of Student's 95 % interval of that mean; None with one seed.
        paper: the paper's number of the row less that of the other.
        verdict: `holds`, `fails`, `within noise` or `one seed`.
    """

    row: str
    against: str
    metric: str
    label: str
    seeds: int
    difference: float
    margin: float | None
    paper: float
    verdict: str


def compare(experiment: Experiment, records: list[Record]) -> list[Comparison]:
    """All comparisons that the paper has numbers for and ours have a seed for; metrics in the order of the columns."""
    made = []
    for metric in experiment.metrics:
        if metric.paper is None:
            continue
        values = {(r["row"], r["seed"]): r["value"] for r in records if r["metric"] == metric.name}
        told = [row for row in experiment.rows if metric.paper in row.paper]
        for against, row in pairwise(told):
            paper = row.paper[metric.paper] - against.paper[metric.paper]
            differences = _paired(values, row, against)
            if paper and differences:
                mean, margin = fmean(differences), _margin(differences)
                verdict = _verdict(mean, margin, paper)
                about = (row.label, against.label, metric.name, metric.label)
                made.append(Comparison(*about, len(differences), mean, margin, paper, verdict))
    return made


def cells(comparisons: list[Comparison]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of their table."""
    rows = []
    for one in comparisons:
        margin = "" if one.margin is None else f" ± {one.margin:.2g}"
        ours, paper = f"{one.difference:+.3g}{margin}", f"{one.paper:+.3g}"
        rows.append([one.row, one.against, one.label, ours, paper, one.verdict])
    return list(HEAD), rows


def _paired(values: dict, row: Row, against: Row) -> list[float]:
    seeds = sorted(seed for label, seed in values if label == row.label and (against.label, seed) in values)
    return [values[row.label, seed] - values[against.label, seed] for seed in seeds]


def _margin(differences: list[float]) -> float | None:
    count = len(differences)
    if count == 1:
        return None
    return float(stdtrit(count - 1, (1 + CONFIDENCE) / 2)) * stdev(differences) / sqrt(count)


def _verdict(mean: float, margin: float | None, paper: float) -> str:
    if margin is None:
        return "one seed"
    if abs(mean) <= margin:
        return "within noise"
    return "holds" if mean * paper > 0 else "fails"
