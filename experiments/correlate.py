"""Rank correlation of the metrics of an experiment over its rows, with bootstrap intervals."""

from __future__ import annotations

from math import isnan
from statistics import fmean

import numpy as np
from scipy import stats

from artifacts.results import NOTHING, Record, Table
from experiments.specification import Experiment
from polytoken.errors import UserError

CONFIDENCE = 0.95
RESAMPLES = 9_999
LEAST_ROWS = 4
LEAST_TOKENIZERS = 8  # with fewer, a bootstrap has too few different samples
HEAD = ["", "Spearman's ρ", "95 % interval", "rows", "tokenizers"]


def correlate(experiment: Experiment, records: list[Record], target: str) -> Table:
    """Spearman's rank correlation of every other metric with one, over the rows that have both.

    A row counts once, with its means over the seeds. Intervals are percentiles of 9,999 bootstrap samples drawn by seed
    0, in which the rows of a tokenizer stay together; samples in which a metric is constant are left out. Below eight
    tokenizers there is none.

    Raises:
        UserError: the experiment has no such metric.
    """
    names = [metric.name for metric in experiment.metrics]
    if target not in names:
        raise UserError(f"{experiment.name} has no metric {target}: choose one of {', '.join(names)}")
    of_target = _means(records, target)
    tokenizers = {row.label: str(row.stages[0]) for row in experiment.rows}
    rows = []
    for metric in experiment.metrics:
        found = _means(records, metric.name)
        common = [row for row in found if row in of_target]
        if metric.name == target or len(common) < LEAST_ROWS:
            continue
        x, y = (np.array([values[row] for row in common]) for values in (found, of_target))
        names_of = [tokenizers[row] for row in common]
        rho = float(_rho(x, y))
        line = [NOTHING, NOTHING] if isnan(rho) else [f"{rho:+.2f}", _interval(x, y, names_of)]
        rows.append([metric.label, *line, str(len(common)), str(len(set(names_of)))])
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


def _interval(x: np.ndarray, y: np.ndarray, tokenizers: list[str]) -> str:
    """Percentiles over samples of tokenizers, each with all its rows."""
    groups = [np.flatnonzero([one == name for one in tokenizers]) for name in dict.fromkeys(tokenizers)]
    if len(groups) < LEAST_TOKENIZERS:
        return NOTHING
    draws = np.random.default_rng(0).integers(len(groups), size=(RESAMPLES, len(groups)))
    samples = (np.concatenate([groups[index] for index in draw]) for draw in draws)
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.nanpercentile([_rho(x[rows], y[rows]) for rows in samples], [tail, 100 - tail])
    return f"{low:+.2f} to {high:+.2f}"
