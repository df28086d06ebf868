"""Autoregressive head of FAR (FQGAN section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from polytoken.errors import UserError
from polytoken.generators.heads.base import ClassifierHead
from polytoken.ranges import at_least
from polytoken.sampling.categorical import Draw
from polytoken.transformer import BlockStack, RotaryCache, TrunkConfig, check_head_width


class AutoregressiveHead(ClassifierHead):
    """Small causal transformer over the k sub-codes of a position (FQGAN section 3.3).

    Step 0 reads the trunk's output, step i > 0 the embedding of sub-code i - 1; step i predicts sub-code i. Blocks,
    dropouts and rotary table are of the trunk's kind: step 0 has the class's rotation, step 1 that of grid position
    (0, 0), step 2 of (0, 1). There are no step embeddings.

    Args:
        depth: blocks; 3 in FAR-Base, 4 in FAR-Large.
        width: of the blocks; None is the trunk's. Another one adds a linear layer a sub-code.
        num_heads: attention heads; None keeps the trunk's channels a head.
    """

    reads_codes: ClassVar = True

    def __init__(self, depth: int = 3, width: int | None = None, num_heads: int | None = None) -> None:
        super().__init__()
        at_least(1, self, depth=depth, width=width, num_heads=num_heads)
        self.depth = depth
        self.width = width
        self.num_heads = num_heads

    def connect(self, trunk: TrunkConfig, codebook_sizes: Sequence[int], grid: tuple[int, int]) -> None:
        """Raise UserError where attention heads do not fit the width, or sub-codes the rotary table."""
        width = self.width or trunk.dim
        num_heads = self.num_heads or (trunk.num_heads if width == trunk.dim else max(1, width // trunk.head_dim))
        check_head_width(width, num_heads, "AutoregressiveHead")
        num_sub_codes = len(codebook_sizes)
        if num_sub_codes > 1 + grid[0] * grid[1]:
            raise UserError(
                f"AutoregressiveHead has {num_sub_codes} sub-codes; a {grid[0]} × {grid[1]} grid has too few rows"
            )
        self._build_outputs(width, codebook_sizes)
        config = replace(trunk, dim=width, depth=self.depth, num_heads=num_heads)
        self.stack = BlockStack(config, (grid,), capacity=num_sub_codes)
        self.projections = nn.ModuleList(
            nn.Identity() if width == trunk.dim else nn.Linear(trunk.dim, width, bias=False) for _ in codebook_sizes
        )

    def states(self, hidden: Tensor, codes: Tensor, embeddings: nn.ModuleList) -> Sequence[Tensor]:
        inputs = [hidden, *(embeddings[i](codes[:, i]).type_as(hidden) for i in range(len(self.outputs) - 1))]
        projected = [project(one) for project, one in zip(self.projections, inputs, strict=True)]
        features, _ = self.stack(torch.stack(projected, dim=1))
        return self.norm(features).unbind(1)

    def reads_hidden(self, sub_code: int) -> bool:
        return sub_code == 0  # the others read the embedding of the sub-code before

    def new_cache(self, batch: int) -> RotaryCache:
        return self.stack.new_cache(batch)

    def sample(self, hidden: Tensor, embeddings: nn.ModuleList, draw: Draw, cache: RotaryCache | None = None) -> Tensor:
        cache = self.new_cache(hidden.shape[0]) if cache is None else cache
        vector = hidden
        chosen: list[Tensor] = []
        for i, output in enumerate(self.outputs):
            state = self.stack.step(self.projections[i](vector).unsqueeze(1), i, cache)
            chosen.append(draw.categorical(output(self.norm(state.squeeze(1))), i))
            if i + 1 < len(self.outputs):
                vector = embeddings[i](chosen[-1].repeat(hidden.shape[0] // chosen[-1].shape[0]))
        return torch.stack(chosen, dim=1)
