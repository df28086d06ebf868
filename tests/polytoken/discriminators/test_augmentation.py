"""Differentiable augmentation against loops over pixels."""

import pytest
import torch

from polytoken.discriminators import DiffAugment
from polytoken.discriminators.augmentation import cut_out, recolor, translate


@pytest.fixture
def images() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.rand(3, 3, 6, 5, dtype=torch.float64) * 2 - 1


def test_translation_against_a_loop(images: torch.Tensor) -> None:
    down, right = torch.tensor([2, -1, 0]), torch.tensor([-3, 1, 0])
    expected = torch.zeros_like(images)
    for i in range(3):
        for y in range(6):
            for x in range(5):
                row, column = y - int(down[i]), x - int(right[i])
                if 0 <= row < 6 and 0 <= column < 5:
                    expected[i, :, y, x] = images[i, :, row, column]
    assert torch.equal(translate(images, down, right), expected)


def test_cutout_against_a_loop(images: torch.Tensor) -> None:
    top, left = torch.tensor([-1, 4, 2]), torch.tensor([0, 3, -2])
    expected = images.clone()
    for i in range(3):
        for y in range(max(0, int(top[i])), min(6, int(top[i]) + 3)):
            for x in range(max(0, int(left[i])), min(5, int(left[i]) + 2)):
                expected[i, :, y, x] = 0
    assert torch.equal(cut_out(images, top, left, (3, 2)), expected)


def test_color_against_a_loop(images: torch.Tensor) -> None:
    brightness, saturation, contrast = torch.rand(3, 3, dtype=torch.float64)
    expected = torch.empty_like(images)
    for i in range(3):
        bright = images[i] + brightness[i]
        for y in range(6):
            for x in range(5):
                grey = sum(bright[channel, y, x] for channel in range(3)) / 3
                for channel in range(3):
                    expected[i, channel, y, x] = grey + (bright[channel, y, x] - grey) * saturation[i]
        mean = expected[i].sum() / 90
        expected[i] = mean + (expected[i] - mean) * contrast[i]
    torch.testing.assert_close(recolor(images, brightness, saturation, contrast), expected)


def test_gradients_reach_the_images(images: torch.Tensor) -> None:
    images.requires_grad_()
    amounts = torch.tensor([0.3, 0.7, 1.2], dtype=torch.float64)
    shift = torch.tensor([1, -2, 0])

    def augmented(images: torch.Tensor) -> torch.Tensor:
        return cut_out(translate(recolor(images, amounts, amounts, amounts), shift, shift), shift, shift, (3, 2))

    assert torch.autograd.gradcheck(augmented, images)


def test_draws_are_per_image_within_their_ranges_and_reproducible() -> None:
    images = torch.ones(64, 3, 16, 16)
    torch.manual_seed(1)
    moved = DiffAugment(("translation",))(images)
    assert torch.equal(moved[:, 0], moved[:, 1])
    rows, columns = moved[:, 0].amax(2).sum(1), moved[:, 0].amax(1).sum(1)
    assert set(rows.tolist()) == set(columns.tolist()) == {14.0, 15.0, 16.0}, "at most an eighth of the side"
    cut = 1 - DiffAugment(("cutout",))(images)[:, 0]
    assert cut.sum((1, 2)).max() == 64 and cut.sum((1, 2)).min() < 64, "half the side, cut at the border"
    bright = DiffAugment(("color",))(images)[:, 0, 0, 0] - 1
    assert bright.min() >= -0.5 and bright.max() <= 0.5 and bright.unique().numel() == 64
    torch.manual_seed(1)
    assert torch.equal(DiffAugment(("translation",))(images), moved)


def test_the_probability_applies_to_the_whole_batch() -> None:
    images = torch.rand(8, 3, 16, 16)
    torch.manual_seed(0)
    same = [torch.equal(DiffAugment(("color",), probability=0.5)(images), images) for _ in range(40)]
    assert 10 < sum(same) < 30
    assert torch.equal(DiffAugment(probability=0.0)(images), images)
    with pytest.raises(ValueError, match="DiffAugment: probability is 2.0; it must be from 0 to 1"):
        DiffAugment(probability=2.0)
