"""Rank correlation of the metrics of an experiment over its rows, with bootstrap intervals."""

from __future__ import annotations

from statistics import fmean

import numpy as np
from scipy import stats

from artifacts.results import Record, Table
from experiments.specification import Experiment
from polytoken.errors import UserError

CONFIDENCE = 0.95
RESAMPLES = 9_999
LEAST_ROWS = 4
HEAD = ["", "Spearman's ρ", "95 % interval", "rows"]


def correlate(experiment: Experiment, records: list[Record], target: str) -> Table:
    """Spearman's rank correlation of every other metric with one, over the rows that have both.

    A row counts once, with its means over the seeds. Intervals are percentiles of 9,999 bootstrap samples of rows drawn
    by seed 0; samples in which a metric is constant are left out.

    Raises:
        UserError: the experiment has no such metric.
    """
    names = [metric.name for metric in experiment.metrics]
    if target not in names:
        raise UserError(f"{experiment.name} has no metric {target}: choose one of {', '.join(names)}")
    of_target = _means(records, target)
    rows = []
    for metric in experiment.metrics:
        found = _means(records, metric.name)
        common = [row for row in found if row in of_target]
        if metric.name == target or len(common) < LEAST_ROWS:
            continue
        x, y = (np.array([values[row] for row in common]) for values in (found, of_target))
        low, high = _interval(x, y)
        rows.append([metric.label, f"{_rho(x, y):+.2f}", f"{low:+.2f} to {high:+.2f}", str(len(common))])
    label = experiment.metrics[names.index(target)].label
    return Table(HEAD, rows, f"Rank correlation with {label} over rows (means over seeds)")


def _means(records: list[Record], metric: str) -> dict[str, float]:
    rows = dict.fromkeys(record.row for record in records if record.metric == metric)
    return {row: fmean(one.value for one in records if (one.row, one.metric) == (row, metric)) for row in rows}


def _rho(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation along the last axis; NaN where one of both is constant."""
    ranks = [stats.rankdata(values, axis=-1) for values in (x, y)]
    centred = [values - values.mean(-1, keepdims=True) for values in ranks]
    with np.errstate(invalid="ignore"):
        return (centred[0] * centred[1]).sum(-1) / np.sqrt(np.prod([(one**2).sum(-1) for one in centred], axis=0))


def _interval(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    draws = np.random.default_rng(0).integers(len(x), size=(RESAMPLES, len(x)))
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.nanpercentile(_rho(x[draws], y[draws]), [tail, 100 - tail])
    return float(low), float(high)
