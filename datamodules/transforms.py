"""Transforms from stored images to tensors: ADM's crop recipe, which LlamaGen and its descendants train with.

No transform reads a global random state: a training crop is a function of the image and the given generator.
EXIF orientation is ignored, as in ADM, so that numbers stay comparable with published ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from polytoken.errors import UserError
from polytoken.images import centre_square, resize_short_side, to_rgb, to_tensor


@dataclass(frozen=True)
class TrainingTransform:
    """ADM's random crop: random scale, random place, and a horizontal flip with probability 1/2.

    The shorter side becomes a random whole number between `ceil(size / high)` and `ceil(size / low)`, both included,
    where `crop_fraction` is (low, high): the part of the shorter side that the crop shows.
    """

    size: int
    crop_fraction: tuple[float, float] = (0.8, 1.0)
    horizontal_flip: bool = True

    def __post_init__(self) -> None:
        _check_size(self.size)
        low, high = self.crop_fraction
        if not 0 < low <= high <= 1:
            raise UserError(f"crop_fraction=({low}, {high}): expected 0 < low <= high <= 1.")

    @property
    def largest_side(self) -> int:
        """The longest shorter side that an image is scaled to, in pixels."""
        return math.ceil(self.size / self.crop_fraction[0])

    def __call__(self, image: Image.Image, generator: np.random.Generator) -> torch.Tensor:
        """Return float32 (3, size, size) in [-1, 1]."""
        smallest = math.ceil(self.size / self.crop_fraction[1])
        target = int(generator.integers(smallest, self.largest_side, endpoint=True))
        pixels = np.asarray(resize_short_side(to_rgb(image), target))
        top = int(generator.integers(pixels.shape[0] - self.size, endpoint=True))
        left = int(generator.integers(pixels.shape[1] - self.size, endpoint=True))
        pixels = pixels[top : top + self.size, left : left + self.size]
        if self.horizontal_flip and generator.random() < 0.5:
            pixels = pixels[:, ::-1]
        return to_tensor(pixels)


@dataclass(frozen=True)
class EvaluationTransform:
    """ADM's centre crop: the shorter side becomes `size`, and the middle square of the longer one is kept."""

    size: int

    def __post_init__(self) -> None:
        _check_size(self.size)

    def __call__(self, image: Image.Image, generator: np.random.Generator | None = None) -> torch.Tensor:
        """Return float32 (3, size, size) in [-1, 1]; deterministic, `generator` is not read."""
        return to_tensor(centre_square(image, self.size))


def _check_size(size: int) -> None:
    if size < 1:
        raise UserError(f"data.image_size is {size}: images have at least 1 pixel a side")
