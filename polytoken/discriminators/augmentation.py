"""Differentiable augmentation of the images that a discriminator sees (DiffAugment, arXiv 2006.10738)."""

from __future__ import annotations

from typing import Literal, final

import torch
from torch import Tensor, nn

from polytoken.ranges import within

Operation = Literal["color", "translation", "cutout"]


@final
class DiffAugment(nn.Module):
    """Random colour, translation and cutout, drawn for each image; gradients flow through to the images.

    The same policy, with new random numbers, augments real and reconstructed images: augmenting real images alone would
    teach the autoencoder the augmentation.

    Args:
        policy: operations, applied in this order.
        probability: chance of each operation for a whole batch; 1 in the paper and in ImageFolder, 0.5 in Ideal.
        cutout: side of the cut-out square as a fraction of the image's; 0.5 in the paper, 0.2 in ImageFolder and Ideal.
        max_shift: largest translation, as a fraction of the image's side.
    """

    def __init__(
        self,
        policy: tuple[Operation, ...] = ("color", "translation", "cutout"),
        probability: float = 1.0,
        cutout: float = 0.5,
        max_shift: float = 0.125,
    ) -> None:
        super().__init__()
        within(0, 1, self, probability=probability, cutout=cutout, max_shift=max_shift)
        self.policy = policy
        self.probability = probability
        self.cutout = cutout
        self.max_shift = max_shift

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] to augmented ones, not clamped."""
        operations = {"color": self._recolor, "translation": self._translate, "cutout": self._cut_out}
        for name in self.policy:
            # torch.where instead of a branch: the host must not wait for the coin
            coin = torch.rand((), device=images.device) < self.probability
            images = torch.where(coin, operations[name](images), images)
        return images

    def _recolor(self, images: Tensor) -> Tensor:
        brightness, saturation, contrast = torch.rand(3, len(images), device=images.device)
        return recolor(images, brightness - 0.5, saturation * 2, contrast + 0.5)

    def _translate(self, images: Tensor) -> Tensor:
        shifts = []
        for side in images.shape[-2:]:
            largest = round(side * self.max_shift)
            shifts.append(torch.randint(-largest, largest + 1, (len(images),), device=images.device))
        return translate(images, *shifts)

    def _cut_out(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        size = round(height * self.cutout), round(width * self.cutout)
        top, left = (
            torch.randint(0, side + 1, (len(images),), device=images.device) - cut // 2
            for side, cut in zip((height, width), size, strict=True)
        )
        return cut_out(images, top, left, size)


def recolor(images: Tensor, brightness: Tensor, saturation: Tensor, contrast: Tensor) -> Tensor:
    """Add ``brightness``, scale the distance to the pixel's mean over channels, then that to the image's mean.

    Args:
        images: (B, 3, H, W).
        brightness: (B,).
        saturation: (B,) factors.
        contrast: (B,) factors.
    """
    brightness, saturation, contrast = (value.view(-1, 1, 1, 1) for value in (brightness, saturation, contrast))
    images = images + brightness
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * saturation
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + (images - mean) * contrast


def translate(images: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Shift images (B, C, H, W) by ``down`` and ``right`` (B,) pixels; 0 fills the border."""
    height, width = images.shape[-2:]
    rows = torch.arange(height, device=images.device) - down[:, None]
    columns = torch.arange(width, device=images.device) - right[:, None]
    inside = _within(rows, height)[:, None, :, None] & _within(columns, width)[:, None, None, :]
    moved = images.gather(2, rows.clamp(0, height - 1)[:, None, :, None].expand_as(images))
    moved = moved.gather(3, columns.clamp(0, width - 1)[:, None, None, :].expand_as(images))
    return torch.where(inside, moved, 0.0)


def cut_out(images: Tensor, top: Tensor, left: Tensor, size: tuple[int, int]) -> Tensor:
    """Set a rectangle of ``size`` pixels with its corner at ``top`` and ``left`` (B,) to 0; it may reach outside."""
    rows = torch.arange(images.shape[2], device=images.device) - top[:, None]
    columns = torch.arange(images.shape[3], device=images.device) - left[:, None]
    cut = _within(rows, size[0])[:, None, :, None] & _within(columns, size[1])[:, None, None, :]
    return torch.where(cut, 0.0, images)


def _within(positions: Tensor, size: int) -> Tensor:
    return (positions >= 0) & (positions < size)
