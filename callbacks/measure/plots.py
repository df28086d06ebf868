"""Plots of a run: drawn without a display, written into the run's directory and to loggers that take images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from artifacts.display import disable_mathtext, printable
from polytoken.images import save_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GAP = 2
FONT_SIZE = 12


@runtime_checkable
class ImageLogger(Protocol):
    """A logger that takes images, as Lightning's WandbLogger does."""

    def log_image(self, key: str, images: list[Any], step: int | None = None) -> None:
        """Log images uint8 (H, W, 3) under one name."""


def publish(trainer: pl.Trainer, name: str, plot: np.ndarray) -> None:
    """Write uint8 (H, W, 3) to ``<name>.png`` in the run's directory, and to every logger that takes images."""
    save_png(Path(trainer.default_root_dir) / f"{name}.png", plot)
    for writer in tensorboard_writers(trainer):
        writer.add_image(name, plot, logged_step(trainer), dataformats="HWC")
    for logger in trainer.loggers:
        if isinstance(logger, ImageLogger):
            logger.log_image(name, [plot], step=logged_step(trainer))


def logged_step(trainer: pl.Trainer) -> int:
    """The present step of a fit; in a validation that of the checkpoint (callbacks.MetricsFile)."""
    return max(trainer.global_step, trainer.fit_loop.epoch_loop._batches_that_stepped)


def tensorboard_writers(trainer: pl.Trainer) -> Iterator[Any]:
    """The SummaryWriter of each TensorBoard logger."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            yield logger.experiment


def image_table(
    rows: Sequence[Sequence[Tensor]],
    row_labels: Sequence[str] = (),
    column_titles: Sequence[str] = (),
    pixels: int = 64,
) -> np.ndarray:
    """Table of images uint8 (3, H, W) of one size, with labels at the left and titles above; uint8 (H, W, 3).

    Args:
        rows: the images; a short row is filled up with white.
        row_labels: one per row, or none.
        column_titles: one per column, or none.
        pixels: minimum height of an image in the plot; small images are enlarged without smoothing.
    """
    row_labels, column_titles = [*map(printable, row_labels)], [*map(printable, column_titles)]
    scale = max(1, -(-pixels // rows[0][0].shape[-2]))
    height, width = (side * scale for side in rows[0][0].shape[-2:])
    font = ImageFont.load_default(FONT_SIZE)
    left = GAP + (max(_width(font, label) for label in row_labels) + 2 * GAP if row_labels else 0)
    top = GAP + (FONT_SIZE + 3 * GAP if column_titles else 0)
    pitch = GAP + max(width, *(_width(font, title) for title in column_titles), 0)
    columns = max(len(row) for row in rows)
    table = Image.new("RGB", (left + columns * pitch, top + len(rows) * (height + GAP)), "white")
    pen = ImageDraw.Draw(table)
    for column, title in enumerate(column_titles):
        pen.text((left + column * pitch + width // 2, GAP), title, fill="black", font=font, anchor="ma")
    for number, row in enumerate(rows):
        y = top + number * (height + GAP)
        if row_labels:
            pen.text((left - 2 * GAP, y + height // 2), row_labels[number], fill="black", font=font, anchor="rm")
        for column, image in enumerate(row):
            enlarged = image.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
            table.paste(Image.fromarray(enlarged.permute(1, 2, 0).cpu().numpy()), (left + column * pitch, y))
    return np.array(table)


def new_plot(columns: int, rows: int = 1, size: float = 4.5) -> tuple[Figure, np.ndarray]:
    """A matplotlib figure, independent of pyplot, and its axes (rows, columns), each ``size`` inches wide and high."""
    from matplotlib.figure import Figure

    plot = Figure(figsize=(columns * size, rows * size), layout="constrained", dpi=100)
    return plot, plot.subplots(rows, columns, squeeze=False)


def render(plot: Figure) -> np.ndarray:
    """Pixels of a plot, uint8 (H, W, 3)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    disable_mathtext(plot)
    canvas = FigureCanvasAgg(plot)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def draw_matrix(
    axes: Axes,
    matrix: Tensor,
    title: str,
    labels: tuple[str, str],
    names: tuple[Sequence[str], Sequence[str]],
    limits: tuple[float, float],
) -> None:
    """Draw a matrix as coloured cells with their values; NaN is a white cell with a dash.

    Args:
        axes: the panel.
        matrix: (rows, columns).
        title: title above the panel.
        labels: labels of the vertical and the horizontal axis.
        names: names of the rows and of the columns.
        limits: values at the ends of the colour bar.
    """
    values = matrix.detach().double().cpu().numpy()
    colours = "RdBu_r" if limits[0] < 0 else "viridis"
    image = axes.imshow(values, cmap=colours, vmin=limits[0], vmax=limits[1])
    axes.figure.colorbar(image, ax=axes, shrink=0.8)
    axes.set_title(title, fontsize=10)
    axes.set(ylabel=labels[0], xlabel=labels[1])
    axes.set_yticks(range(len(names[0])), names[0])
    axes.set_xticks(range(len(names[1])), names[1])
    for (row, column), value in np.ndenumerate(values):
        text = "–" if np.isnan(value) else f"{value:.2f}"
        red, green, blue, _ = image.cmap(image.norm(value)) if not np.isnan(value) else (1, 1, 1, 1)
        dark = 0.3 * red + 0.6 * green + 0.1 * blue < 0.5
        axes.text(column, row, text, ha="center", va="center", color="white" if dark else "black")


def _width(font: Any, text: str) -> int:
    return ceil(font.getlength(text))
