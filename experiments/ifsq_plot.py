"""Plot of iFSQ Fig. 3 from the results of `experiments/ifsq/fig3.yaml`: effect of the slope α of the bound.

Command: python -m experiments.ifsq_plot runs/experiments/results/ifsq/fig3_photos.json fig3.png
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from artifacts.results import Record, Results
from commands.program import new_parser, run
from experiments.plot import save
from polytoken import records
from polytoken.errors import UserError
from polytoken.metrics.uniformity import ks_to_uniform, rmse_to_uniform
from polytoken.quantizers.finite_scalar import bound

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ALPHA = re.compile(r"α = (\d+(?:\.\d+)?)")  # in the labels of the rows
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


def plot(curves: Curves) -> Figure:
    """Points for the seeds, a line through their means, and N(0, 1) latents dashed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 6.5), layout="constrained")
    panels = figure.subplots(2, 3)
    for axes, (metric, title, unit) in zip(panels.flat[: len(PANELS)], PANELS, strict=True):
        if values := curves.get(metric):
            _draw(axes, values)
            if metric in IDEAL:
                _draw_ideal(axes, min(values), max(values), IDEAL[metric])
        else:
            axes.text(0.5, 0.5, "not measured", ha="center", va="center", transform=axes.transAxes)
        axes.set(title=title, xlabel="α of f(z) = 2σ(αz) − 1", ylabel=unit)
        axes.grid(alpha=0.3)
    panels.flat[5].axis("off")
    panels.flat[5].legend(*panels.flat[3].get_legend_handles_labels(), loc="center", frameon=False)
    figure.suptitle("Effect of α on finite scalar quantization (iFSQ, Fig. 3)")
    return figure


def read(found: Iterable[Record]) -> Curves:
    """Values of the seeds by metric and ascending α; raises UserError if no row is labelled `α = …`."""
    curves: Curves = defaultdict(lambda: defaultdict(list))
    for record in found:
        if alpha := ALPHA.search(record.row):
            curves[record.metric][float(alpha[1])].append(record.value)
    if not curves:
        raise UserError("no row is labelled 'α = …': name the results of ifsq/fig3")
    return {metric: dict(sorted(values.items())) for metric, values in curves.items()}


def _draw(axes: Axes, values: dict[float, list[float]]) -> None:
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
    axes.plot(alphas, [distance(bound(normal, a)).item() for a in alphas], "--", color="C1", label="N(0, 1) latents")


def main(arguments: list[str] | None = None) -> None:
    """Draw the picture."""
    parser = new_parser("experiments.ifsq_plot", __doc__)
    parser.add_argument("results", type=Path, help="JSON file of the results of ifsq/fig3")
    parser.add_argument("picture", type=Path, help="file to write, .png, .svg or .pdf")
    run(parser, lambda given: save(plot(read(records.read(given.results, Results).records)), given.picture), arguments)


if __name__ == "__main__":
    main()
