import math

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.transforms import EvaluationTransform, TrainingTransform, resize_short_side, to_tensor


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def box_halved(pixels: np.ndarray) -> np.ndarray:
    """Mean of each 2 x 2 block."""
    height, width = pixels.shape[0] // 2 * 2, pixels.shape[1] // 2 * 2
    blocks = pixels[:height, :width].astype(np.float64).reshape(height // 2, 2, width // 2, 2, 3)
    return blocks.mean(axis=(1, 3))


def test_halves_with_box_then_ends_with_bicubic() -> None:
    image = noise(200, 96)
    halved = resize_short_side(
        image, 48
    )  # one halving reaches the target, and bicubic to the same size changes nothing
    assert halved.size == (100, 48)
    assert np.abs(np.asarray(halved) - box_halved(np.asarray(image))).max() <= 1  # two roundings
    not_halved = resize_short_side(image, 49)  # 96 < 2 x 49: bicubic alone
    expected = image.resize((round(200 * 49 / 96), 49), Image.Resampling.BICUBIC)
    assert np.array_equal(np.asarray(not_halved), np.asarray(expected))


def test_two_halvings_for_a_large_image() -> None:
    image = noise(260, 200)
    twice = image.resize((130, 100), Image.Resampling.BOX).resize((65, 50), Image.Resampling.BOX)
    expected = twice.resize((round(65 * 40 / 50), 40), Image.Resampling.BICUBIC)
    assert np.array_equal(np.asarray(resize_short_side(image, 40)), np.asarray(expected))


def test_small_images_are_enlarged() -> None:
    assert resize_short_side(noise(10, 7), 32).size == (46, 32)


@pytest.mark.parametrize("size", [(101, 64), (64, 101), (64, 64)])
def test_evaluation_crops_the_centre(size: tuple[int, int]) -> None:
    image = noise(*size)
    out = EvaluationTransform(64)(image)
    left, top = (size[0] - 64) // 2, (size[1] - 64) // 2
    expected = np.asarray(image)[top : top + 64, left : left + 64]
    assert out.shape == (3, 64, 64) and out.dtype == torch.float32
    assert torch.equal(out, torch.from_numpy(expected.copy()).permute(2, 0, 1).float() / 127.5 - 1)


def test_values_span_minus_one_to_one() -> None:
    pixels = np.array([[[0, 255, 51]]], dtype=np.uint8)
    assert to_tensor(pixels).flatten().tolist() == pytest.approx([-1, 1, -0.6])


def test_training_crop_is_one_of_the_crops_the_recipe_allows() -> None:
    image, size, scales, flips, corners = noise(50, 40), 32, set(), set(), set()
    transform = TrainingTransform(size)
    candidates = {target: np.asarray(resize_short_side(image, target)) for target in range(32, math.ceil(32 / 0.8) + 1)}
    for seed in range(300):
        crop = transform(image, np.random.default_rng(seed))
        pixels = ((crop + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
        found = None
        for target, whole in candidates.items():
            for flipped, view in ((False, pixels), (True, pixels[:, ::-1])):
                windows = np.lib.stride_tricks.sliding_window_view(whole[..., 0], (size, size))
                hits = np.argwhere((windows == view[..., 0]).all(axis=(2, 3)))
                if len(hits):
                    found = (target, flipped, tuple(hits[0]), whole.shape)
        assert found is not None
        target, flipped, corner, shape = found
        scales.add(target)
        flips.add(flipped)
        if corner[0] == shape[0] - size and target > size:
            corners.add("bottom")
        if corner[0] == 0 and target > size:
            corners.add("top")
    assert scales == set(range(32, 41))  # both ends included
    assert flips == {False, True}
    assert corners == {"bottom", "top"}


def test_flip_can_be_switched_off_and_fractions_narrowed() -> None:
    image = noise(32, 32)
    transform = TrainingTransform(32, (1.0, 1.0), horizontal_flip=False)
    for seed in range(8):
        assert torch.equal(transform(image, np.random.default_rng(seed)), EvaluationTransform(32)(image))


def test_training_crop_depends_on_the_generator_only() -> None:
    image, transform = noise(60, 60), TrainingTransform(32)
    first = transform(image, np.random.default_rng(1))
    np.random.default_rng(2).random()
    assert torch.equal(first, transform(image, np.random.default_rng(1)))
    assert not torch.equal(first, transform(image, np.random.default_rng(2)))


@pytest.mark.parametrize("fraction", [(0.0, 1.0), (0.9, 0.8), (0.8, 1.1)])
def test_invalid_crop_fractions_are_rejected(fraction: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="crop_fraction"):
        TrainingTransform(32, fraction)


@pytest.mark.parametrize("transform", [TrainingTransform, EvaluationTransform])
def test_images_have_pixels(transform: type) -> None:
    with pytest.raises(ValueError, match=r"data\.image_size is 0: images have at least 1 pixel a side"):
        transform(0)
