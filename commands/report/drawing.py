"""Plots of the report as SVG: curves of a run, and generation over reconstruction."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from artifacts.display import disable_mathtext, printable
from commands.metric_names import name_of
from commands.report.content import Picture
from polytoken.files import check_no_pipe

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)

SVG = "image/svg+xml"
MAX_POINTS = 400
MAX_CURVES = 12
Points = dict[str, tuple[list[float], list[float]]]  # by row: rFD and gFD of the seeds


def curves(path: Path) -> Iterator[Picture]:
    """Values logged by the run in ``path`` over steps; tags that differ only in their last number share a plot."""
    if not (files := list(path.glob("events.out.tfevents.*"))):
        return
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    events = EventAccumulator(str(path), size_guidance={SCALARS: 0})
    try:
        for file in files:
            check_no_pipe(file)
        events.Reload()
    except (ValueError, OSError) as error:  # ValueError: the name of the directory is no Unicode
        log.warning(
            "the events of %s cannot be read, and its curves are left out: %s", *map(printable, (str(path), str(error)))
        )
        return
    groups: dict[str, list[str]] = {}
    for tag in sorted(events.Tags()[SCALARS]):
        if tag.startswith(("train/", "val/")) and not tag.endswith("_originals") and len(events.Scalars(tag)) > 1:
            groups.setdefault(re.sub(r"/\d+$", "", tag), []).append(tag)
    # the loss and the metrics first; gradient norms and the like last
    order = sorted(groups, key=lambda name: (name != "train/loss", not name.startswith("val/"), name))
    for name in order[:MAX_CURVES]:
        figure, axes = _new(4.2, 2.6)
        for tag in groups[name]:
            points = [(event.step, event.value) for event in events.Scalars(tag)]
            every = -(-len(points) // MAX_POINTS)
            axes.plot(*zip(*points[::every], strict=True), label=tag.removeprefix(f"{name}/"), linewidth=1.2)
        title = name_of(name).head if name in groups[name] else name
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step", fontsize=9)
        if len(groups[name]) > 1:
            axes.legend(fontsize=8)
        yield Picture(SVG, _svg(figure, name), f"{name} over steps ({path.parent.name}/{path.name})")


def discrepancy(points: Points, text: str) -> Picture:
    """Distance of samples over distance of reconstructions: means over the seeds with their standard deviations.

    Rows that share a tokenizer have one colour.
    """
    figure, axes = _new(6.4, 3.8)
    colours: dict[float, str] = {}
    for (label, (reconstructed, generated)), marker in zip(points.items(), cycle("osD^vP*X"), strict=False):
        x, y = fmean(reconstructed), fmean(generated)
        across, along = (stdev(column) if len(column) > 1 else None for column in (reconstructed, generated))
        colour = colours.setdefault(x, f"C{len(colours)}")
        axes.errorbar(x, y, along, across, marker=marker, color=colour, label=label, linestyle="", capsize=2)
    axes.margins(0.12)
    axes.set_xlabel("rFD: of reconstructions", fontsize=9)
    axes.set_ylabel("gFD: of samples", fontsize=9)
    figure.legend(loc="outside right upper", fontsize=8)
    return Picture(SVG, _svg(figure, text), text)


def _new(width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
    return figure, axes


def _svg(figure: Figure, salt: str) -> bytes:
    from matplotlib import rc_context

    disable_mathtext(figure)
    file = io.BytesIO()
    with rc_context({"svg.hashsalt": salt}):  # the same page for the same runs
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()
