"""Representation alignment of a generator with a frozen teacher (REPA, arXiv 2410.06940; iFSQ section 4.2)."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Literal, final, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from polytoken.errors import UserError
from polytoken.generators.base import Generator
from polytoken.ranges import at_least, one_of, require
from polytoken.teachers import Teacher

Offset = Literal[0, 1]


@final
class RepresentationAlignment(nn.Module):
    """Training loss that draws the hidden states of one block towards a teacher's patches; sampling does not use it.

    The loss is −cos(projector(hidden i), patch i), a mean over images and positions. The projector has three linear
    layers with SiLU between them; its weights start Xavier-uniform and its biases at zero, as in the released diffusion
    code of iFSQ (its autoregressive code draws N(0, 0.02²)). The teacher is no part of this module's weights.

    Args:
        teacher: its last block is compared. A published model reads images at the size that gives it the generator's
            grid, unless ``image_size`` is set. A finer grid of a multiple of the rows and columns is averaged.
        weight: λ, the factor in the training loss; 2.0 for LlamaGen and 0.5 for DiT in iFSQ.
        depth: the block whose output is aligned, counted from 1; None is a third of the generator's depth.
        width: hidden channels of the projector.
        offset: 0 compares hidden state i of an autoregressive generator, which has not seen code i, with patch i, as
            the released code of iFSQ does. 1 compares hidden state i + 1, the first that has seen code i, with patch i.

    Raises:
        UserError: the weight or the width is not positive, or the offset is neither 0 nor 1.
    """

    projector: nn.Sequential
    tap: int
    """The aligned block, set by :meth:`connect`."""

    def __init__(
        self, teacher: Teacher, weight: float, depth: int | None = None, width: int = 2048, offset: Offset = 0
    ) -> None:
        super().__init__()
        check_projection("alignment", weight, width)
        one_of("alignment", get_args(Offset), offset=offset)
        self.teacher = teacher
        self.weight = weight
        self.depth = depth
        self.width = width
        self.offset = offset

    def connect(self, generator: Generator) -> None:
        """Fit the teacher to the grid of a connected generator, and build the projector.

        Raises:
            MissingFileError: the teacher's file is given and missing.
            UserError: the generator has no such block, its grid does not fit the teacher's, or the offset is 1 and the
                generator is not causal.
        """
        self.tap = aligned_block(self.depth, generator.depth)
        check_block("alignment", self.tap, generator)
        if self.offset and not generator.is_causal:
            raise UserError(
                f"alignment.offset is {self.offset} and {type(generator).__name__} sees all positions at once: set it "
                "to 0"
            )
        self.grid = generator.hidden_grid
        self.teacher = self.teacher.for_grid(self.grid)
        self._check_grid()
        self.teacher.check()
        self.projector = projector(generator.width, self.width, self.teacher.width)

    @cached_property
    def identity(self) -> str:
        """Name and digest of the teacher's weights; loads the teacher."""
        return self.teacher.identity

    def forward(self, hidden: Tensor, images: Tensor) -> Tensor:
        """Return the unweighted loss, a float32 scalar.

        Args:
            hidden: output (B, N, width) of the aligned block.
            images: (B, 3, H, W) in [−1, 1], the crops that the tokenizer encoded.
        """
        return negative_cosine(self.projector(hidden), self.targets(images), self.offset)

    @torch.no_grad()
    def targets(self, images: Tensor) -> Tensor:
        """Return the teacher's features (B, N, D) of images, float32, averaged over the patches of a position."""
        (features,) = self.teacher.features(images)
        patches = features.patches.permute(0, 3, 1, 2)
        return functional.adaptive_avg_pool2d(patches, self.grid).flatten(2).transpose(1, 2)

    def _check_grid(self) -> None:
        rows, columns = self.teacher.grid
        if rows % self.grid[0] or columns % self.grid[1] or rows * self.grid[1] != columns * self.grid[0]:
            raise UserError(
                f"teacher {self.teacher.name} has a grid of {rows} × {columns} patches and the generator one of "
                f"{self.grid[0]} × {self.grid[1]} positions: take a teacher whose grid is that one or a multiple of it"
            )


def aligned_block(depth: int | None, blocks: int) -> int:
    """Number of the aligned block of a trunk: ``depth``, or a third of its blocks for None."""
    return max(1, round(blocks / 3)) if depth is None else depth


def check_projection(setting: str, weight: float, width: int) -> None:
    """Raise SettingError where the weight or the width of a setting's loss is not positive."""
    positive = f"above 0, and finite (set {setting} to null for none)"
    require(setting, {"weight": weight}, lambda value: 0 < value < math.inf, positive)
    at_least(1, setting, width=width)


def check_block(setting: str, block: int, generator: Generator) -> None:
    """Raise UserError where the generator has no block of this number, counted from 1."""
    if not 1 <= block <= generator.depth:
        raise UserError(
            f"{setting}.depth is {block} and the generator has blocks 1 to {generator.depth}: choose one of them"
        )


def projector(channels: int, width: int, out_channels: int) -> nn.Sequential:
    """Linear–SiLU–Linear–SiLU–Linear; weights start Xavier-uniform, biases at zero."""
    made = nn.Sequential(
        nn.Linear(channels, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, out_channels)
    )
    for layer in made[::2]:
        assert isinstance(layer, nn.Linear)
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
    return made


def negative_cosine(predictions: Tensor, targets: Tensor, offset: int = 0, skipped: Tensor | None = None) -> Tensor:
    """Return −cos of predictions (B, N, D) to targets (B, N, D), a float32 mean over images and positions.

    Prediction i + ``offset`` is compared with target i, so that N − ``offset`` pairs remain. Pairs whose target is in
    ``skipped`` (B, N) bool add 0 to the mean.
    """
    positions = targets.shape[1] - offset
    with torch.autocast(predictions.device.type, enabled=False):
        cosines = functional.cosine_similarity(predictions[:, offset:].float(), targets[:, :positions].float(), dim=2)
        if skipped is not None:
            cosines = cosines.masked_fill(skipped[:, :positions], 0)
        return -cosines.mean()
