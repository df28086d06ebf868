"""Crops for the token store."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from datamodules.transforms import EvaluationTransform
from datamodules.views import Views, ViewsTransform
from polytoken.images import to_tensor


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_the_centre_view_equals_the_evaluation_crop() -> None:
    image = picture(45, 37)
    views = ViewsTransform(16, Views())(image)
    assert views.shape == (1, 3, 16, 16)
    assert torch.equal(views[0], EvaluationTransform(16)(image))
    both = ViewsTransform(16, Views(flip=True))(image)
    assert torch.equal(both[0], views[0]) and torch.equal(both[1], views[0].flip(-1))


@pytest.mark.parametrize(("size", "side"), [(256, 281), (20, 22), (20, 23), (10, 13)])
def test_ten_crop_holds_the_crops_of_torchvision(size: int, side: int) -> None:
    """Margins of 25, 2 and 3 pixels: even, and odd with the half rounded down and up. Corners in another order."""
    image = picture(side, side)  # no resizing
    views = ViewsTransform(size, Views("ten_crop", flip=True, enlargements=((side + 0.5) / size,)))(image)
    crops = [to_tensor(np.asarray(crop)) for crop in transforms.TenCrop(size)(image)]
    order = [4, 0, 1, 2, 3, 9, 6, 5, 8, 7]  # centre first; ours names a mirrored crop by where it is in the image
    torch.testing.assert_close(views, torch.stack([crops[number] for number in order]), rtol=0, atol=0)


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
