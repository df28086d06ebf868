from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks.measure.plots import draw_matrix, image_table, new_plot, publish, render
from tests.support.validation import quiet_trainer


class WandbLike(CSVLogger):
    """The signature of Lightning's WandbLogger, whose package is not installed here."""

    def __init__(self, place: Path) -> None:
        super().__init__(place)
        self.logged: list[tuple[str, list[Any], int | None]] = []

    def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: Any) -> None:
        self.logged.append((key, images, step))


def test_pictures_go_to_every_logger_that_takes_images(tmp_path: Path) -> None:
    plot = np.full((4, 6, 3), 7, np.uint8)
    fake, board = WandbLike(tmp_path), TensorBoardLogger(tmp_path, "", "")
    publish(quiet_trainer(tmp_path, [], logger=[fake, board, CSVLogger(tmp_path)]), "usage", plot)
    assert (np.asarray(Image.open(tmp_path / "usage.png")) == plot).all()
    ((key, (image,), step),) = fake.logged
    assert (key, step) == ("usage", 0) and image is plot
    board.experiment.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert events.Tags()["images"] == ["usage"]


@pytest.mark.parametrize("logger", [False, CSVLogger])
def test_other_loggers_leave_pictures_in_the_run(tmp_path: Path, logger: type[Logger] | bool) -> None:
    chosen = logger if isinstance(logger, bool) else logger(tmp_path)  # type: ignore[call-arg]
    publish(quiet_trainer(tmp_path, [], logger=chosen), "usage", np.zeros((4, 6, 3), np.uint8))
    assert (tmp_path / "usage.png").exists()


def test_the_table_places_images_labels_and_titles() -> None:
    images = [torch.full((3, 2, 4), 100 + 10 * number, dtype=torch.uint8) for number in range(5)]
    rows = [images[:3], images[3:]]
    bare = image_table(rows, pixels=16)
    assert bare.shape == (2 + 2 * 18, 2 + 3 * 34, 3)  # 2 × 4 images, eight times as large
    assert (bare[2:18, 36:68] == 110).all() and (bare[20:36, 2:34] == 130).all()
    assert (bare[18:, 70:] == 255).all()  # a short row leaves white
    table = image_table(rows, ["above", "below"], ["a", "b", "a long title"], pixels=16)
    upper, left = np.argwhere(table[..., 0] == 100)[-1] - (15, 31)  # where the first image begins
    dark = table.max(axis=2) < 90  # only letters are dark
    assert dark[:upper, left:].any() and not dark[upper:, left:].any(), "titles are above the images"
    assert dark[upper : upper + 16, :left].any() and dark[upper + 18 :, :left].any(), "labels are at the left"
    next_image = np.argwhere(table[..., 0] == 110)[-1][1] - 31
    assert next_image - left > 40, "columns are as wide as the widest title"


def test_the_matrix_shows_values_and_missing_cells() -> None:
    figure, axes = new_plot(columns=2)
    matrix = torch.tensor([[1.0, torch.nan], [-0.25, 0.5]])
    names = (["0", "1"], ["mid", "high"])
    for panel, limits in zip(axes[0], ((-1, 1), (0, 1)), strict=True):
        draw_matrix(panel, matrix, "a title", ("subspace", "teacher"), names, limits)
    assert [text.get_text() for text in axes[0, 0].texts] == ["1.00", "–", "-0.25", "0.50"]
    assert axes[0, 0].get_title() == "a title" and axes[0, 0].get_xlabel() == "teacher"
    assert [tick.get_text() for tick in axes[0, 0].get_xticklabels()] == ["mid", "high"]
    assert len(figure.axes) == 4  # two with a colour bar each
    picture = render(figure)
    assert picture.dtype == np.uint8 and picture.shape == (450, 900, 3) and picture.std() > 10
