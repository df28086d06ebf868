"""Metrics of sets of images against real ones, as a table with a row for each set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from artifacts.results import Table
from artifacts.run_files import Evaluation, ImageMetric
from commands.metric_names import kind_of

SETS = {
    "samples": "samples",
    "reconstructions": "reconstructions of the validation images",
    "validation": "real validation images",
    "train": "real training images",
}
KINDS = {  # title with arrow, and format
    "fid": ("FID ↓", "{:.2f}"),
    "fd": ("Fréchet distance ↓", "{:.4g}"),
    "sfid": ("sFID ↓", "{:.2f}"),
    "is": ("score ↑", "{:.2f}"),
    "recognised": ("recognised as their label ↑", "{:.1%}"),
    "precision": ("precision ↑", "{:.3f}"),
    "recall": ("recall ↑", "{:.3f}"),
    "kid": ("KID ↓", "{:.4g}"),
    "kd": ("kernel distance ↓", "{:.4g}"),
}


def head_of(name: str) -> str:
    """Head of the column of a metric."""
    return KINDS.get(kind_of(name), (name, ""))[0]


def text_of(name: str, metric: ImageMetric) -> str:
    """Value of a metric, with its deviation; a dash if it is not finite."""
    if metric["value"] is None:
        return "–"
    text = KINDS.get(kind_of(name), (name, "{:.4g}"))[1].format(metric["value"])
    deviation = metric.get("deviation")
    return text if deviation is None else f"{text} ± {deviation:.2g}"


def table_of(evaluated: Evaluation, caption: str) -> Table | None:
    """A row for each set of images, a column for each metric of any of them; None without a metric."""
    sets = {SETS.get(name, name): metrics for name, metrics in _ordered(evaluated["metrics"]) if metrics}
    kinds = {kind_of(name): name for metrics in sets.values() for name in metrics}
    if not kinds:
        return None
    kinds = {kind: name for kind in (*KINDS, *kinds) if (name := kinds.get(kind)) is not None}
    rows = []
    for title, metrics in sets.items():
        found = {kind_of(name): (name, metric) for name, metric in metrics.items()}
        numbers = [_cell(*found[kind]) if kind in found else "–" for kind in kinds]
        rows.append([title, f"{next(iter(metrics.values()))['n']:,}", *numbers])
    return Table(["images", "number", *map(head_of, kinds.values())], rows, caption)


def _ordered(sets: Mapping[str, dict[str, ImageMetric]]) -> Iterator[tuple[str, dict[str, ImageMetric]]]:
    yield from ((name, sets[name]) for name in (*SETS, *(name for name in sets if name not in SETS)) if name in sets)


def _cell(name: str, metric: ImageMetric) -> str:
    """The value, and the number of real images that a Fréchet distance compares with."""
    compared = kind_of(name) in ("fid", "fd") and metric["value"] is not None and metric.get("reference_n")
    return text_of(name, metric) + (f" (to {metric['reference_n']:,})" if compared else "")
