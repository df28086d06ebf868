"""Alignment of a generator with the tokenizer's code vectors (reAR, arXiv 2510.04450)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from polytoken.codec import FrozenCodec
from polytoken.errors import UserError
from polytoken.generators.alignment import check_block, check_projection, negative_cosine, projector
from polytoken.generators.base import Generator
from polytoken.specs import TokenSpec


class CodeAlignmentLoss(NamedTuple):
    """Two unweighted losses, float32 scalars in [−1, 1].

    Attributes:
        read: −cos of the first block's output to the vectors of the codes that it has just read. Replaced codes add 0.
        following: −cos of a deep block's output to the vectors of the codes that are predicted.
    """

    read: Tensor
    following: Tensor


@final
class CodeAlignment(nn.Module):
    """Training loss that draws hidden states towards the tokenizer's code vectors; sampling does not use it.

    The vector of a position is the concatenation of those of its k sub-codes. Two projectors of three linear layers
    with SiLU map to it: one from the output of the first block at the position that reads code i, and one from that of
    a deep block at the position that predicts code i. Both targets are vectors of clean codes. The last code of an
    image is not read, so that N − 1 pairs of the first kind remain. The vectors are in no checkpoint.

    Args:
        weight: factor of the sum of both losses in the training loss; 1 in reAR.
        depth: the deep block, counted from 1; None is the one after three quarters of the generator's: 19 of 24, as in
            reAR's code.
        width: hidden channels of the projectors.

    Raises:
        UserError: the weight or the width is not positive.
    """

    projectors: nn.ModuleList
    taps: tuple[int, int]
    """The first block and the deep one, set by :meth:`connect`."""

    def __init__(self, weight: float = 1.0, depth: int | None = None, width: int = 2048) -> None:
        super().__init__()
        check_projection("code_alignment", weight, width)
        self.weight = weight
        self.depth = depth
        self.width = width

    def connect(self, generator: Generator, codec: FrozenCodec) -> None:
        """Look up the code vectors of a connected generator's tokenizer, and build the projectors.

        Raises:
            UserError: the generator is not causal or has no such block, or its codes have several scales.
        """
        if not (generator.is_causal and isinstance(generator.spec, TokenSpec)):
            raise UserError(
                f"code_alignment is for generators that read one code after another, and {type(generator).__name__} "
                "is none: leave it out"
            )
        if len(generator.spec.scales) > 1:
            raise UserError(
                f"the tokenizer has codes of {len(generator.spec.scales)} scales, whose vectors are summed, and no "
                "vector of one position: leave out code_alignment, or use a tokenizer of one scale"
            )
        deep = min(generator.depth, round(generator.depth * 3 / 4) + 1) if self.depth is None else self.depth
        check_block("code_alignment", deep, generator)
        self.taps = 1, deep
        vectors = codec.code_vectors()
        for i, one in enumerate(vectors):
            self.register_buffer(f"vectors_{i}", one, persistent=False)
        channels = sum(one.shape[1] for one in vectors)
        self.projectors = nn.ModuleList(projector(generator.width, self.width, channels) for _ in self.taps)

    def forward(self, hidden: Mapping[int, Tensor], codes: Tensor, replaced: Tensor | None = None) -> CodeAlignmentLoss:
        """Return both losses.

        Args:
            hidden: outputs (B, N, width) of the tapped blocks.
            codes: (B, k, N), clean.
            replaced: (B, N) bool, positions whose codes the generator read as others; None if none.
        """
        targets = self.targets(codes)
        first, deep = (project(hidden[tap]) for project, tap in zip(self.projectors, self.taps, strict=True))
        return CodeAlignmentLoss(negative_cosine(first, targets, 1, replaced), negative_cosine(deep, targets))

    def targets(self, codes: Tensor) -> Tensor:
        """Return the vectors (B, N, Σ d_i) of codes (B, k, N), float32."""
        tables = [self.get_buffer(f"vectors_{i}") for i in range(codes.shape[1])]
        return torch.cat([functional.embedding(codes[:, i], table) for i, table in enumerate(tables)], dim=2)
