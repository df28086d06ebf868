"""Crops for the token store."""

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.transforms import EvaluationTransform
from datamodules.views import Views, ViewsTransform


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_the_centre_view_equals_the_evaluation_crop() -> None:
    image = picture(45, 37)
    views = ViewsTransform(16, Views())(image)
    assert views.shape == (1, 3, 16, 16)
    assert torch.equal(views[0], EvaluationTransform(16)(image))
    both = ViewsTransform(16, Views(flip=True))(image)
    assert torch.equal(both[0], views[0]) and torch.equal(both[1], views[0].flip(-1))


def test_ten_crop_has_corners_and_centre_of_281_pixels_and_mirror_images() -> None:
    image = picture(281, 281)  # no resizing
    pixels = torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy()) / 127.5 - 1
    views = ViewsTransform(256, Views("ten_crop", flip=True))(image)
    places = [(12, 12), (0, 0), (0, 25), (25, 0), (25, 25)]  # centre first, then the corners
    for number, (top, left) in enumerate(places):
        crop = pixels[:, top : top + 256, left : left + 256]
        torch.testing.assert_close(views[number], crop.float())
        torch.testing.assert_close(views[number + 5], crop.flip(-1).float())
    assert len(views) == 10


def test_names_follow_the_order_of_the_views() -> None:
    assert Views().names == ("centre of 1",)
    five = Views("ten_crop").names
    assert five == tuple(
        f"{place} of 1.1" for place in ("centre", "top left", "top right", "bottom left", "bottom right")
    )
    both = Views("ten_crop", flip=True, enlargements=(1.1, 1.05))
    assert len(both.names) == len(set(both.names)) == 20
    assert both.names[5] == "centre of 1.05" and both.names[10] == "centre of 1.1, mirrored"
    shapes = ViewsTransform(16, both)(picture(40, 30)).shape
    assert shapes == (20, 3, 16, 16)


@pytest.mark.parametrize("enlargements", [(), (0.9,)])
def test_views_smaller_than_the_image_are_rejected(enlargements: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="views.enlargements=.*at least 1"):
        Views("ten_crop", enlargements=enlargements)
