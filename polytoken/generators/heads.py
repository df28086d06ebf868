"""Heads: from a trunk's output to the k sub-codes of a position (SSQ section 4.1, FQGAN section 3.3)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from polytoken.errors import UserError
from polytoken.generators.linear_cross_entropy import linear_cross_entropy
from polytoken.linear import Linear
from polytoken.transformer import BlockStack, KVCache, RMSNorm, TrunkConfig, check_head_width

Choose = Callable[[Tensor, int], Tensor]
"""(logits (B', K_i), sub-code i) to codes (B,): guidance and sampling rules; B' is 2B under guidance, else B."""


class Head(nn.Module, ABC):
    """What predicts the sub-codes; a config builds it with its own arguments, :meth:`connect` with what it joins.

    After ``connect`` it holds ``norm``, the final RMSNorm, and ``outputs``, one (K_i, width) layer a sub-code that
    starts at zero, so that the first loss is ln K_i. Neither shares weights with the embeddings.
    """

    norm: RMSNorm
    outputs: nn.ModuleList

    @abstractmethod
    def connect(self, trunk: TrunkConfig, codebook_sizes: Sequence[int], grid: tuple[int, int]) -> None:
        """Build all that has sizes: for a trunk's width, k sub_codes and a grid (h, w)."""

    @abstractmethod
    def states(self, hidden: Tensor, codes: Tensor, embeddings: nn.ModuleList) -> Sequence[Tensor]:
        """What each output layer reads when the codes are known.

        Args:
            hidden: trunk outputs (M, dim).
            codes: the positions' own codes (M, k); state i may depend on those before i.
            embeddings: k tables (K_i, dim), the trunk's input.

        Returns:
            k tensors (M, width), normalised.
        """

    @abstractmethod
    def sample(self, hidden: Tensor, embeddings: nn.ModuleList, choose: Choose, cache: KVCache | None = None) -> Tensor:
        """Write the codes of one position.

        Args:
            hidden: trunk outputs (B', dim); under guidance the conditional half, then the unconditional one.
            embeddings: k tables (K_i, dim).
            choose: picks codes (B,) from logits (B', K_i); both halves read on with them.
            cache: of :meth:`new_cache`, for as many rows.

        Returns:
            (B, k) int64.
        """

    def new_cache(self, batch: int) -> KVCache | None:
        """What :meth:`sample` needs at every position, allocated once; None where it needs nothing."""
        return None

    def loss(self, hidden: Tensor, codes: Tensor, embeddings: nn.ModuleList, inputs: Tensor | None = None) -> Tensor:
        """Mean cross-entropy of each sub-code in nats, (k,) float32.

        Args:
            hidden: trunk outputs (B, N, dim).
            codes: targets (B, k, N).
            embeddings: k tables (K_i, dim).
            inputs: codes (B, k, N) the head reads, where they are not the targets.
        """
        read = (codes if inputs is None else inputs).transpose(1, 2).flatten(0, 1)
        states = self.states(hidden.flatten(0, 1), read, embeddings)
        return torch.stack(
            [
                linear_cross_entropy(state, cast(nn.Linear, output).weight, codes[:, i].flatten())
                for i, (state, output) in enumerate(zip(states, self.outputs, strict=True))
            ]
        )

    def initialise(self) -> None:
        """Start from uniform predictions; called when all weights have the generator's initialisation."""
        for output in self.outputs:
            nn.init.zeros_(cast(nn.Linear, output).weight)

    def _connect(self, width: int, codebook_sizes: Sequence[int]) -> None:
        self.norm = RMSNorm(width)
        self.outputs = nn.ModuleList(Linear(width, size) for size in codebook_sizes)


class _IndependentHead(Head):
    """Sub-codes predicted side by side, none of them seeing another."""

    def sample(self, hidden: Tensor, embeddings: nn.ModuleList, choose: Choose, cache: KVCache | None = None) -> Tensor:
        """See :meth:`Head.sample`; ``cache`` is not used."""
        no_codes = torch.empty(len(hidden), 0, dtype=torch.int64, device=hidden.device)
        states = self.states(hidden, no_codes, embeddings)
        chosen = [choose(output(state), i) for i, (state, output) in enumerate(zip(states, self.outputs, strict=True))]
        return torch.stack(chosen, dim=1)


class MultiLinearHead(_IndependentHead):
    """One linear classifier a sub-code (SSQ Table 4); with one codebook it is :class:`LinearHead`."""

    def connect(self, trunk: TrunkConfig, codebook_sizes: Sequence[int], grid: tuple[int, int]) -> None:
        """See :meth:`Head.connect`."""
        self._connect(trunk.dim, codebook_sizes)

    def states(self, hidden: Tensor, codes: Tensor, embeddings: nn.ModuleList) -> Sequence[Tensor]:
        """See :meth:`Head.states`; all are the same, and depend on no code."""
        return [self.norm(hidden)] * len(self.outputs)


class LinearHead(MultiLinearHead):
    """LlamaGen's: norm and a linear classifier, for one code a position."""

    def connect(self, trunk: TrunkConfig, codebook_sizes: Sequence[int], grid: tuple[int, int]) -> None:
        """See :meth:`Head.connect`; ValueError unless there is one codebook."""
        if len(codebook_sizes) != 1:
            raise UserError(
                f"LinearHead predicts one code a position and the data has {len(codebook_sizes)}: select one "
                "(data.init_args.sub_codes: [0]) or take AutoregressiveHead, MultiLinearHead or MultiMLPHead"
            )
        super().connect(trunk, codebook_sizes, grid)


class MultiMLPHead(_IndependentHead):
    """One multi-layer perceptron a sub-code (SSQ Table 4).

    Args:
        hidden: width of the hidden layers; None is the trunk's.
        depth: hidden layers, each followed by SiLU.
    """

    def __init__(self, hidden: int | None = None, depth: int = 2) -> None:
        super().__init__()
        if depth < 1 or (hidden is not None and hidden < 1):
            raise UserError(f"MultiMLPHead: hidden {hidden} and depth {depth} must be at least 1")
        self.hidden = hidden
        self.depth = depth

    def connect(self, trunk: TrunkConfig, codebook_sizes: Sequence[int], grid: tuple[int, int]) -> None:
        """See :meth:`Head.connect`."""
        width = self.hidden or trunk.dim
        self._connect(width, codebook_sizes)
        self.norm = RMSNorm(trunk.dim)  # reads the trunk, as in the linear heads
        widths = [trunk.dim] + [width] * self.depth
        self.perceptrons = nn.ModuleList(
            nn.Sequential(
                *(layer for i in range(self.depth) for layer in (nn.Linear(widths[i], widths[i + 1]), nn.SiLU()))
            )
            for _ in codebook_sizes
        )

    def initialise(self) -> None:
        """See :meth:`Head.initialise`; hidden layers keep the variance, for no skip leads around them."""
        super().initialise()
        for layer in self.perceptrons.modules():
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

    def states(self, hidden: Tensor, codes: Tensor, embeddings: nn.ModuleList) -> Sequence[Tensor]:
        """See :meth:`Head.states`; they depend on no code."""
        normed = self.norm(hidden)
        return [perceptron(normed) for perceptron in self.perceptrons]


class AutoregressiveHead(Head):
    """FAR's: a small causal transformer over the k slots of a position (FQGAN section 3.3, facts B3).

    Slot 0 holds the trunk's output as it is, slot i > 0 the embedding of sub-code i; slot i predicts sub-code i + 1.
    Blocks, dropouts and rotary table are the trunk's own kind: slot 0 has the class's rotation, slot 1 grid position
    (0, 0), slot 2 (0, 1). There are no slot embeddings.

    Args:
        depth: blocks; 3 in FAR-Base, 4 in FAR-Large.
        width: of the blocks; None is the trunk's. Another one adds a linear layer a slot.
        num_heads: attention heads; None keeps the trunk's channels a head.
    """

    def __init__(self, depth: int = 3, width: int | None = None, num_heads: int | None = None) -> None:
        super().__init__()
        if depth < 1:
            raise UserError(f"AutoregressiveHead: depth is {depth}; it must be at least 1")
        self.depth = depth
        self.width = width
        self.num_heads = num_heads

    def connect(self, trunk: TrunkConfig, codebook_sizes: Sequence[int], grid: tuple[int, int]) -> None:
        """See :meth:`Head.connect`; ValueError where attention heads do not fit the width."""
        width = self.width or trunk.dim
        num_heads = self.num_heads or (trunk.num_heads if width == trunk.dim else max(1, width // trunk.head_dim))
        check_head_width(width, num_heads, "AutoregressiveHead")
        num_slots = len(codebook_sizes)
        if num_slots > 1 + grid[0] * grid[1]:
            raise UserError(f"AutoregressiveHead has {num_slots} slots; a {grid[0]} × {grid[1]} grid has too few rows")
        self._connect(width, codebook_sizes)
        config = replace(trunk, dim=width, depth=self.depth, num_heads=num_heads)
        self.stack = BlockStack(config, grid, capacity=num_slots)
        self.projections = nn.ModuleList(
            nn.Identity() if width == trunk.dim else Linear(trunk.dim, width) for _ in codebook_sizes
        )

    def states(self, hidden: Tensor, codes: Tensor, embeddings: nn.ModuleList) -> Sequence[Tensor]:
        """See :meth:`Head.states`."""
        slots = [hidden, *(embeddings[i](codes[:, i]).type_as(hidden) for i in range(len(self.outputs) - 1))]
        projected = [project(slot) for project, slot in zip(self.projections, slots, strict=True)]
        return self.norm(self.stack(torch.stack(projected, dim=1))).unbind(1)

    def new_cache(self, batch: int) -> KVCache:
        """See :meth:`Head.new_cache`."""
        return self.stack.new_cache(batch)

    def sample(self, hidden: Tensor, embeddings: nn.ModuleList, choose: Choose, cache: KVCache | None = None) -> Tensor:
        """See :meth:`Head.sample`."""
        cache = self.new_cache(len(hidden)) if cache is None else cache
        slot, chosen = hidden, list[Tensor]()
        for i, output in enumerate(self.outputs):
            state = self.stack.step(self.projections[i](slot).unsqueeze(1), i, cache)
            logits = output(self.norm(state.squeeze(1)))
            chosen.append(choose(logits, i))
            if i + 1 < len(self.outputs):
                slot = embeddings[i](chosen[-1].repeat(len(hidden) // len(chosen[-1])))
        return torch.stack(chosen, dim=1)
