import math

import pytest
import torch

from polytoken.errors import UserError
from polytoken.images import resize_displayed
from polytoken.metrics import GroupedMean, as_displayed, paint_patches, psnr, psnr_unclamped, to_uint8


def test_to_uint8_rounds_and_clamps() -> None:
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(values.float() / 127.5 - 1), values)
    for off in (-0.4, 0.4):  # rounded to the nearest level, not cut off
        assert torch.equal(to_uint8((values.float() + off) / 127.5 - 1), values)
    assert to_uint8(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]


def test_psnr() -> None:
    first = torch.full((2, 3, 4, 4), 100, dtype=torch.uint8)
    second = first.clone()
    second[0] += 10
    values = psnr(first, second)
    assert values[0].item() == pytest.approx(20 * math.log10(25.5))
    assert math.isfinite(values[1].item()) and values[1] > 60


def test_psnr_of_floats_includes_values_outside_the_range() -> None:
    first = torch.zeros(2, 3, 4, 4)
    second = first.clone()
    second[0] += 0.2
    second[1] += 4
    assert psnr_unclamped(first, second).tolist() == pytest.approx([20.0, -20 * math.log10(2)], abs=1e-6)
    assert psnr_unclamped(first, first).tolist() == pytest.approx([106.0, 106.0], abs=0.1)


def test_images_of_another_type_are_refused() -> None:
    """Whole numbers pass for pixels in [-1, 1], and floats for grey levels, with plausible results."""
    pixels, images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(2, 3, 4, 4)
    for convert in (to_uint8, as_displayed, lambda images: resize_displayed(images, 2)):
        with pytest.raises(UserError, match=r"got torch.uint8: convert 8 bits by polytoken.images.from_uint8"):
            convert(pixels)
    for pair in ((images, pixels), (pixels, images), (images, images)):
        with pytest.raises(UserError, match=r"psnr compares uint8 images, .*torch.float32"):
            psnr(*pair)
    for pair in ((images, pixels), (pixels, images), (pixels, pixels)):
        with pytest.raises(UserError, match=r"psnr_unclamped compares floating-point images .*torch.uint8"):
            psnr_unclamped(*pair)


def test_paint_patches() -> None:
    images = torch.arange(16.0).view(1, 1, 4, 4)
    painted = paint_patches(images, (2, 2))
    assert painted[0, 0, :2, :2].tolist() == [[2.5, 2.5], [2.5, 2.5]]
    assert painted.shape == images.shape
    assert paint_patches(torch.ones(1, 3, 16, 16), (3, 3)).eq(1).all(), "a grid that does not divide the image"
    uneven = paint_patches(images, (3, 3))
    assert uneven.shape == images.shape and uneven[0, 0, 0, 0] == (0 + 1 + 4 + 5) / 4


def test_grouped_mean() -> None:
    metric = GroupedMean(3)
    metric.update(torch.tensor([1.0, 2.0]), torch.tensor([0, 2]))
    metric.update(torch.tensor([3.0]), torch.tensor([0]))
    means, overall = metric.compute()
    assert means[[0, 2]].tolist() == [2.0, 2.0]
    assert means[1].isnan()
    assert overall == 2.0
