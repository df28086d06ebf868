"""8-bit images and PSNR."""

from __future__ import annotations

import torch
from torch import Tensor, uint8
from torch.nn import functional

from polytoken.errors import UserError
from polytoken.images import from_uint8, to_uint8


def as_displayed(images: Tensor) -> Tensor:
    """Images in [-1, 1], clamped and rounded to 8 bits as a file holds them, as float32 in [-1, 1]."""
    return from_uint8(to_uint8(images))


def paint_patches(images: Tensor, grid: tuple[int, int]) -> Tensor:
    """Fill each cell of a grid (h, w) over images (B, 3, H, W) with its mean colour, the baseline of a tokenizer.

    Where the grid does not divide the image, means are over all pixels that a cell touches.
    """
    return functional.interpolate(functional.adaptive_avg_pool2d(images, grid), size=images.shape[2:], mode="nearest")


def psnr(first: Tensor, second: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each pair of uint8 images, in dB; (B, 3, H, W) twice to (B,) float64.

    Equal images count as an error of half a grey level in one value, which keeps means finite.

    Raises:
        UserError: if one of the two is not uint8.
    """
    if not first.dtype == second.dtype == uint8:
        raise UserError(
            f"psnr compares uint8 images, got {first.dtype} and {second.dtype}: convert images in [-1, 1] by "
            "polytoken.images.to_uint8"
        )
    squared = (first.double() - second.double()).square().flatten(1)
    error = squared.mean(1).clamp_min(0.25 / squared.shape[1])
    return 10 * torch.log10(255.0**2 / error)


def psnr_unclamped(first: Tensor, second: Tensor) -> Tensor:
    """PSNR of float images in [-1, 1], neither clamped nor rounded; (B, 3, H, W) twice to (B,) float64.

    Equal images get 106 dB, which keeps means finite.

    Raises:
        UserError: if one of the two is not floating point.
    """
    if not (first.is_floating_point() and second.is_floating_point()):
        raise UserError(
            f"psnr_unclamped compares floating-point images in [-1, 1], got {first.dtype} and {second.dtype}: convert "
            "8 bits by polytoken.images.from_uint8"
        )
    error = (first.double() - second.double()).square().flatten(1).mean(1)
    return 10 * torch.log10(2.0**2 / error.clamp_min(1e-10))
