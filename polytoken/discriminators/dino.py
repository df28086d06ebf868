"""Heads on the features of a frozen vision transformer (StyleGAN-T, arXiv 2301.09515; ImageFolder Table 3, row 7)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from polytoken.discriminators.base import Discriminator
from polytoken.errors import UserError
from polytoken.teachers import Teacher


class DinoDiscriminator(Discriminator):
    """One head of spectrally normalised convolutions for each of several blocks of a frozen network.

    A head reads the patches, with the class token added to each, as a sequence. Images larger than the network's are
    cropped or reduced, smaller ones enlarged (bicubic). Computes in float32.

    Args:
        teacher: the frozen network; None is DINO's ViT-S/16.
        blocks: blocks that the heads read, counted from 1; 0 is the input of the first, patches with positions.
        crop: chance that a batch of larger images is cropped at random, at one place, and not reduced by area.
        group_size: largest group of images that share their batch statistics.

    Raises:
        UserError: the network lacks a block, or a value is out of its range.
    """

    def __init__(
        self,
        teacher: Teacher | None = None,
        blocks: Sequence[int] = (0, 3, 6, 9, 12),
        crop: float = 0.5,
        group_size: int = 8,
    ) -> None:
        super().__init__()
        if not blocks or not 0 <= crop <= 1 or group_size < 1:
            raise UserError(
                f"DinoDiscriminator has blocks {list(blocks)}, crop {crop} and group_size {group_size}: give a block, "
                "a crop in [0, 1] and groups of at least 1"
            )
        self.teacher = teacher or Teacher("dino_small_16")
        self.teacher.check(blocks)
        self.blocks = tuple(blocks)
        self.crop = crop
        self.heads = nn.ModuleList(_head(self.teacher.width_at(block), group_size) for block in blocks)

    def prepare(self, device: torch.device) -> None:
        self.teacher.prepare(device)

    @property
    def networks(self) -> frozenset[Path]:
        return frozenset({self.teacher.file})

    def frozen_identities(self) -> dict[str, str]:
        return {"discriminator": self.teacher.identity}

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] to logits (B, blocks · patches), block by block."""
        with torch.autocast(images.device.type, enabled=False):
            images = self._resized(images.float())
            features = self.teacher.features_with_gradient(images, self.blocks, full_precision=True)
            sequences = [(one.patches.flatten(1, 2) + one.cls[:, None]).transpose(1, 2) for one in features]
            logits = [head(sequence) for head, sequence in zip(self.heads, sequences, strict=True)]
        return torch.cat(logits, dim=2).flatten(1)

    def _resized(self, images: Tensor) -> Tensor:
        size = self.teacher.image_size
        if images.shape[-2:] == (size, size):
            return images
        if min(images.shape[-2:]) < size:
            return functional.interpolate(images, (size, size), mode="bicubic")
        rows, columns = (
            torch.randint(side - size + 1, (), device=images.device) + torch.arange(size, device=images.device)
            for side in images.shape[-2:]
        )
        cropped = images.index_select(2, rows).index_select(3, columns)
        reduced = functional.interpolate(images, (size, size), mode="area")
        # torch.where instead of a branch: the host must not wait for the coin
        return torch.where(torch.rand((), device=images.device) < self.crop, cropped, reduced)


class GroupBatchNorm(nn.Module):
    """Batch norm with the statistics of groups of images, in training and evaluation; none are kept.

    A batch splits into as few groups as possible, as even as possible, so that any batch size works.

    Args:
        channels: C.
        group_size: largest number of images in a group; 8 in StyleGAN-T.
    """

    def __init__(self, channels: int, group_size: int = 8) -> None:
        super().__init__()
        self.group_size = group_size
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, features: Tensor) -> Tensor:
        """Normalise (B, C, N) over positions and the images of a group."""
        groups = features.tensor_split(math.ceil(len(features) / self.group_size))
        return torch.cat(
            [functional.batch_norm(group, None, None, self.weight, self.bias, training=True) for group in groups]
        )


def _head(channels: int, group_size: int) -> nn.Sequential:
    """Sequences (B, C, N) to logits (B, 1, N)."""
    return nn.Sequential(
        _block(channels, 1, group_size),
        _Residual(_block(channels, 9, group_size)),
        spectral_norm(nn.Conv1d(channels, 1, 1)),
    )


def _block(channels: int, kernel_size: int, group_size: int) -> nn.Sequential:
    convolution = nn.Conv1d(channels, channels, kernel_size, padding=kernel_size // 2, padding_mode="circular")
    return nn.Sequential(spectral_norm(convolution), GroupBatchNorm(channels, group_size), nn.LeakyReLU(0.2))


class _Residual(nn.Module):
    """(x + f(x)) / √2."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, features: Tensor) -> Tensor:
        return (features + self.branch(features)) / math.sqrt(2)
