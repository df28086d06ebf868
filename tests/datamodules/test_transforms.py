import math

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.transforms import EvaluationTransform, TrainingTransform
from polytoken.images import resize_short_side


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("size", [(101, 64), (64, 101), (64, 64)])
def test_evaluation_crops_the_centre(size: tuple[int, int]) -> None:
    image = noise(*size)
    out = EvaluationTransform(64)(image)
    left, top = (size[0] - 64) // 2, (size[1] - 64) // 2
    expected = np.asarray(image)[top : top + 64, left : left + 64]
    assert out.shape == (3, 64, 64) and out.dtype == torch.float32
    assert torch.equal(out, torch.from_numpy(expected.copy()).permute(2, 0, 1).float() / 127.5 - 1)


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
