"""What is drawn for the report: curves of a run, and reconstruction against generation. All of it is SVG."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from commands.report.content import Picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_POINTS = 400
MOST_CURVES = 12
GAP = 0.065  # between two labels, as a share of the height


@dataclass(frozen=True)
class Point:
    """A row of an experiment: the seeds' distances of reconstructions and of samples to real images."""

    label: str
    reconstructed: list[float]
    generated: list[float]


def curves(path: Path) -> Iterator[Picture]:
    """Values that the run in ``path`` logged, over steps; those that differ in their last number share a picture."""
    if not any(path.glob("events.out.tfevents.*")):
        return
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    events = EventAccumulator(str(path), size_guidance={SCALARS: 0})
    events.Reload()
    groups: dict[str, list[str]] = {}
    for tag in sorted(events.Tags()[SCALARS]):
        if tag.startswith(("train/", "val/")) and not tag.endswith("_originals") and len(events.Scalars(tag)) > 1:
            groups.setdefault(re.sub(r"/\d+$", "", tag), []).append(tag)
    # what was optimized and what was measured come first; gradient norms and the like last
    order = sorted(groups, key=lambda name: (name != "train/loss", not name.startswith("val/"), name))
    for name in order[:MOST_CURVES]:
        lines = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in groups[name]}
        yield Picture("image/svg+xml", _curve(name, lines), f"{name} over steps ({path.parent.name}/{path.name})")


def discrepancy(points: list[Point]) -> bytes:
    """Distance of samples over distance of reconstructions, means over seeds with a standard deviation each.

    Points of one colour have one tokenizer. Labels stand in a column at the right, so that none hides another.
    """
    figure, axes = _new(5.4, 3.8)
    places = [(fmean(point.reconstructed), fmean(point.generated)) for point in points]
    colours = {x: f"C{index}" for index, x in enumerate(dict.fromkeys(x for x, _ in places))}
    for point, (x, y) in zip(points, places, strict=True):
        across, along = (
            stdev(column) if len(column) > 1 else None for column in (point.reconstructed, point.generated)
        )
        axes.errorbar(
            x, y, xerr=across, yerr=along, marker="o", markersize=5, elinewidth=0.8, capsize=2, color=colours[x]
        )
    axes.margins(0.12)
    axes.set_xlabel("rFD: of reconstructions", fontsize=9)
    axes.set_ylabel("gFD: of samples", fontsize=9)
    _name(axes, [point.label for point in points], places, [colours[x] for x, _ in places])
    return _svg(figure, "discrepancy")


def _name(axes: Axes, labels: list[str], places: list[tuple[float, float]], colours: list[str]) -> None:
    low, high = axes.get_ylim()
    axes.set_ylim(low, high)
    order = sorted(range(len(places)), key=lambda index: places[index][1])
    heights = spread([(places[index][1] - low) / (high - low) for index in order])
    for index, height in zip(order, heights, strict=True):
        axes.annotate(
            labels[index],
            places[index],
            xytext=(1.04, height),
            textcoords="axes fraction",
            fontsize=8,
            va="center",
            arrowprops={"arrowstyle": "-", "linewidth": 0.5, "color": colours[index], "shrinkA": 0, "shrinkB": 3},
        )


def spread(heights: list[float], gap: float = GAP) -> list[float]:
    """Ascending heights moved as little as may be, so that they are ``gap`` apart and, if there is room, below 1."""
    placed: list[float] = []
    for height in heights:
        placed.append(max(height, placed[-1] + gap) if placed else height)
    above = 1 + gap
    for index in reversed(range(len(placed))):
        placed[index] = above = min(placed[index], above - gap)
    return placed


def _curve(name: str, lines: dict[str, list[tuple[int, float]]]) -> bytes:
    figure, axes = _new(4.2, 2.6)
    for tag, points in lines.items():
        thinned = points[:: -(-len(points) // MOST_POINTS)]
        axes.plot(*zip(*thinned, strict=True), label=tag.removeprefix(f"{name}/"), linewidth=1.2)
    axes.set_title(name, fontsize=10)
    axes.set_xlabel("step", fontsize=9)
    if len(lines) > 1:
        axes.legend(fontsize=8)
    return _svg(figure, name)


def _new(width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
    return figure, axes


def _svg(figure: Figure, name: str) -> bytes:
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    file = io.BytesIO()
    with rc_context({"svg.hashsalt": name}):  # the same page for the same runs
        FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None})
    return file.getvalue()
