"""Metrics of sets of images against real ones, as a table with a row for each set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from artifacts.results import Table
from artifacts.run_files import Evaluation, ImageMetric
from commands.metric_names import OF_IMAGE_SETS, kind_of, name_of_images

SETS = {
    "samples": "samples",
    "reconstructions": "reconstructions",
    "validation": "real, validation",
    "train": "real, training",
}


def text_of(name: str, metric: ImageMetric) -> str:
    """Value of a metric, with its deviation; a dash if it is not finite."""
    text, deviation = name_of_images(name).text(metric["value"]), metric.get("deviation")
    return text if deviation is None or metric["value"] is None else f"{text} ± {deviation:.2g}"


def table_of(evaluated: Evaluation, caption: str) -> Table | None:
    """A row for each set of images, a column for each metric of any of them; None without a metric."""
    sets = {SETS.get(name, name): metrics for name, metrics in _ordered(evaluated["metrics"]) if metrics}
    kinds = {kind_of(name): name for metrics in sets.values() for name in metrics}
    if not kinds:
        return None
    kinds = {kind: name for kind in (*OF_IMAGE_SETS, *kinds) if (name := kinds.get(kind)) is not None}
    rows = []
    for title, metrics in sets.items():
        found = {kind_of(name): (name, metric) for name, metric in metrics.items()}
        numbers = [_cell(*found[kind]) if kind in found else "–" for kind in kinds]
        rows.append([title, f"{next(iter(metrics.values()))['n']:,}", *numbers])
    return Table(["images", "number", *(name_of_images(name).head for name in kinds.values())], rows, caption)


def _ordered(sets: Mapping[str, dict[str, ImageMetric]]) -> Iterator[tuple[str, dict[str, ImageMetric]]]:
    yield from ((name, sets[name]) for name in (*SETS, *(name for name in sets if name not in SETS)) if name in sets)


def _cell(name: str, metric: ImageMetric) -> str:
    """The value, and the number of real images that a Fréchet distance compares with."""
    compared = kind_of(name) in ("fid", "fd") and metric["value"] is not None and metric.get("reference_n")
    return text_of(name, metric) + (f" (to {metric['reference_n']:,})" if compared else "")
