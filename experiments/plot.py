"""Picture of one metric over another: a panel for each kind of tokenizer, a line through the rows of each `line`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from artifacts.display import disable_mathtext
from artifacts.results import Record
from experiments.specification import Experiment, Metric, Row
from polytoken.errors import UserError
from polytoken.files import replacing

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOGARITHMIC_FROM = 10  # ratio of the largest to the least value
MARKERS = "osD^vP*X<>"
MAX_COLORS = 10  # of matplotlib's cycle
FORMATS = {".png": None, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}  # with metadata that would differ


def plot(experiment: Experiment, records: list[Record], x: str, y: str) -> Figure:
    """Means over the seeds with their sample deviations; rows without a line have their labels beside them.

    Raises:
        UserError: the experiment has no such metric, or no row has both.
    """
    from matplotlib.figure import Figure

    across, up = _metric(experiment, x), _metric(experiment, y)
    measured = {(one.row, one.metric) for one in records}
    rows = [row for row in experiment.rows if (row.label, x) in measured and (row.label, y) in measured]
    if not rows:
        raise UserError(f"no row of {experiment.name} that is done has both {x} and {y}: run it first")
    recipes = list(dict.fromkeys(row.stages[0].recipe or "" for row in rows))
    styles = {name: number for number, name in enumerate(dict.fromkeys(row.line for row in rows if row.line))}
    panels = recipes if styles else [None]
    figure = Figure(figsize=(3.2 * len(panels) + 2.6, 4.0), layout="constrained")
    drawn = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, recipe in zip(drawn, panels, strict=True):
        inside = [row for row in rows if recipe in (None, row.stages[0].recipe or "")]
        for line in dict.fromkeys(row.line for row in inside):
            _draw(axes, [row for row in inside if row.line == line], line, styles, records, x, y)
        axes.set(xlabel=across.label, title=recipe or "")
        axes.grid(alpha=0.3)
    drawn[0].set_ylabel(up.label)
    values = [one.value for one in records if one.metric == y]
    if min(values) > 0 and max(values) > LOGARITHMIC_FROM * min(values):
        drawn[0].set_yscale("log")
    if styles:
        handles: dict[str, Artist] = {}
        for axes in drawn:
            handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
        figure.legend([handles[name] for name in styles], list(styles), loc="outside right center", frameon=False)
    return figure


def save(figure: Figure, picture: Path) -> None:
    """Write the picture; the same results make the same file.

    Raises:
        UserError: the name does not end with that of a format.
    """
    from matplotlib import rc_context

    if picture.suffix not in FORMATS:
        raise UserError(f"{picture} has no known format: end its name with {', '.join(FORMATS)}")
    disable_mathtext(figure)
    with replacing(picture) as unfinished, rc_context({"svg.hashsalt": picture.stem}):
        figure.savefig(unfinished, dpi=150, format=picture.suffix.removeprefix("."), metadata=FORMATS[picture.suffix])


def _metric(experiment: Experiment, name: str) -> Metric:
    found = {metric.name: metric for metric in experiment.metrics}
    if name not in found:
        raise UserError(f"{experiment.name} has no metric {name}: choose one of {', '.join(found)}")
    return found[name]


def _draw(
    axes: Axes, rows: Sequence[Row], line: str | None, styles: dict[str, int], records: list[Record], x: str, y: str
) -> None:
    """Points of the rows in ascending x, with a line through them if they belong to one."""
    points = []
    for row in rows:
        columns = [[one.value for one in records if (one.row, one.metric) == (row.label, name)] for name in (x, y)]
        deviations = [stdev(values) if len(values) > 1 else 0.0 for values in columns]
        points.append((*map(fmean, columns), *deviations, row.label))
    points.sort()
    xs, ys, x_errors, y_errors, labels = zip(*points, strict=True)
    number = styles.get(line or "", 0)
    axes.errorbar(
        xs,
        ys,
        yerr=y_errors,
        xerr=x_errors,
        label=line,
        color=f"C{number % MAX_COLORS}",
        marker=MARKERS[number % len(MARKERS)],
        linestyle="-" if line else "none",
        markersize=4,
        linewidth=1.2,
        elinewidth=0.8,
        capsize=2,
    )
    if line is None:
        for across, up, label in zip(xs, ys, labels, strict=True):
            axes.annotate(label, (across, up), xytext=(4, 4), textcoords="offset points", fontsize=8)
