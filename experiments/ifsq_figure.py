"""iFSQ Fig. 3, drawn from the figures of `experiments/ifsq/fig3.yaml`: what the slope α of the bound does.

Command: python -m experiments.ifsq_figure runs/experiments/results/ifsq/fig3_photos.csv fig3.png
"""

from __future__ import annotations

import csv
import re
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from polytoken.errors import UserError
from polytoken.metrics.uniformity import ks_to_uniform, rmse_to_uniform
from polytoken.quantizers.finite_scalar import bound

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ALPHA = re.compile(r"α = (\d+(?:\.\d+)?)")  # as the rows are labelled
PANELS = (
    ("val/psnr", "PSNR of the reconstruction", "dB, higher is better"),
    ("val/ssim", "SSIM of the reconstruction", "higher is better"),
    ("val/ks", "KS distance to U(−1, 1)", "lower is more uniform"),
    ("val/rmse_uniform", "RMSE to U(−1, 1)", "lower is more uniform"),
    ("val/entropy_ratio", "Entropy of the levels", "share of log L, higher is better"),
)
IDEAL = {"val/ks": ks_to_uniform, "val/rmse_uniform": rmse_to_uniform}
NAMED = {1.6: "iFSQ", 2.0: "tanh"}

Curves = dict[str, dict[float, list[float]]]


def figure(results: Path) -> Figure:
    """The curves of a table of results: a point a seed, a line through their means, and N(0, 1) dashed beside.

    Args:
        results: CSV with columns row, metric and value; rows are labelled `α = 1.6 …`.

    Raises:
        ValueError: if no row is labelled so.
    """
    from matplotlib.figure import Figure

    curves = read(results)
    picture = Figure(figsize=(12, 6.5), layout="constrained")
    panels = picture.subplots(2, 3)
    for axes, (metric, title, unit) in zip(panels.flat[: len(PANELS)], PANELS, strict=True):
        _draw(axes, curves.get(metric, {}))
        if metric in IDEAL and metric in curves:
            _draw_ideal(axes, min(curves[metric]), max(curves[metric]), IDEAL[metric])
        axes.set(title=title, xlabel="α of f(z) = 2σ(αz) − 1", ylabel=unit)
        axes.grid(alpha=0.3)
    legend, legend_axes = panels.flat[3].get_legend_handles_labels(), panels.flat[5]
    legend_axes.axis("off")
    legend_axes.legend(*legend, loc="center", frameon=False)
    picture.suptitle("Effect of α on finite scalar quantization (iFSQ, Fig. 3)")
    return picture


def read(results: Path) -> Curves:
    """Values of the seeds by metric and α."""
    curves: Curves = defaultdict(lambda: defaultdict(list))
    with results.open(encoding="utf-8", newline="") as file:
        for record in csv.DictReader(file):
            if alpha := ALPHA.search(record["row"]):
                curves[record["metric"]][float(alpha[1])].append(float(record["value"]))
    if not curves:
        raise UserError(f"{results} has no row labelled 'α = …': is it the table of ifsq/fig3?")
    return {metric: dict(sorted(values.items())) for metric, values in curves.items()}


def _draw(axes: Axes, values: dict[float, list[float]]) -> None:
    if not values:
        axes.text(0.5, 0.5, "not measured", ha="center", va="center", transform=axes.transAxes)
        return
    seeds = [(alpha, value) for alpha, column in values.items() for value in column]
    axes.plot(list(values), [fmean(column) for column in values.values()], color="C0", label="mean of the seeds")
    axes.plot(*zip(*seeds, strict=True), "o", color="C0", label="a run")
    axes.margins(y=0.15)  # room for the names above the highest point
    for alpha, name in NAMED.items():
        axes.axvline(alpha, color="0.6", linewidth=0.8)
        axes.text(alpha, 0.98, f" {name}", color="0.4", va="top", transform=axes.get_xaxis_transform())


def _draw_ideal(axes: Axes, first: float, last: float, distance: Callable[[Tensor], Tensor]) -> None:
    normal = torch.special.ndtri((torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000)
    alphas = torch.linspace(first, last, 57, dtype=torch.float64).tolist()
    curve = [distance(bound(normal, alpha)).item() for alpha in alphas]
    axes.plot(alphas, curve, "--", color="C1", label="if latents were N(0, 1)")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m experiments.ifsq_figure RESULTS.csv PICTURE.png")
    figure(Path(sys.argv[1])).savefig(sys.argv[2], dpi=150)
