"""Interface of quantizers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import chain

import torch
from torch import Tensor, nn

from polytoken.errors import UserError
from polytoken.specs import Encoding


class Quantizer(nn.Module, ABC):
    """Maps features (B, in_channels, h, w) to an :class:`Encoding`, in float32 under any trainer precision.

    A quantizer works alone. Inside a tokenizer, the tokenizer reads ``in_subspaces``, projects its base features to
    each of these widths, and passes the concatenation.

    Args:
        in_subspaces: widths of the subspaces it reads; ``in_channels`` is their sum.
        subspace_channels: widths d_1 … d_k of ``Encoding.subspaces``; ``out_channels``, the C of
            ``Encoding.quantized``, is their sum.
        codebook_sizes: K_1 … K_k; empty for a continuous bottleneck.

    Raises:
        UserError: if one of these numbers is not positive.
    """

    def __init__(
        self, in_subspaces: tuple[int, ...], subspace_channels: tuple[int, ...], codebook_sizes: tuple[int, ...]
    ) -> None:
        super().__init__()
        if min((*in_subspaces, *subspace_channels, *codebook_sizes), default=1) < 1:
            codebooks = f" and codebooks of {[*codebook_sizes]} codes" if codebook_sizes else ""
            raise UserError(
                f"{type(self).__name__} has subspaces of {[*subspace_channels]} channels{codebooks}: each number is at "
                "least 1"
            )
        self.in_subspaces = tuple(in_subspaces)  # lists would not equal the tuples of a TokenSpec
        self.in_channels = sum(in_subspaces)
        self.subspace_channels = tuple(subspace_channels)
        self.out_channels = sum(subspace_channels)
        self.codebook_sizes = tuple(codebook_sizes)

    @abstractmethod
    def forward(self, features: Tensor) -> Encoding:
        """Quantize features (B, in_channels, h, w)."""

    @abstractmethod
    def embed_codes(self, codes: Tensor, grid: tuple[int, int]) -> Tensor:
        """Look up codes (B, k, N) of a feature map of ``grid`` (h, w): the ``quantized`` (B, C, h, w) of forward."""

    @torch.no_grad()
    def codebooks(self) -> tuple[Tensor, ...]:
        """Vectors (K_i, d_i) float32 of the codes of each codebook, as they are compared; none for a continuous one."""
        device = next(chain(self.parameters(), self.buffers()), torch.empty(0)).device
        tables = []
        for index, size in enumerate(self.codebook_sizes):
            codes = torch.zeros(1, len(self.codebook_sizes), size, dtype=torch.int64, device=device)
            codes[0, index] = torch.arange(size, device=device)
            vectors = self.embed_codes(codes, (1, size)).split(self.subspace_channels, dim=1)[index]
            tables.append(vectors[0, :, 0].T)
        return tuple(tables)

    def partial_sums(self, codes: Tensor, grid: tuple[int, int]) -> Iterator[Tensor]:
        """Yield ``quantized`` (B, C, h, w) after each scale of codes (B, k, n), which may end after any scale."""
        yield self.embed_codes(codes, grid)

    def snap(self, quantized: Tensor) -> Tensor:
        """Nearest points of the codebooks to ``quantized`` (B, C, h, w), which a generator of latents has drawn.

        Raises:
            UserError: if the quantizer has no points, or no nearest one.
        """
        raise UserError(f"{type(self).__name__} has no points to snap latents to: set sampler.snap to false")

    def scales(self, grid: tuple[int, int]) -> tuple[tuple[int, int], ...]:
        """Grids of the codes of a feature map of ``grid`` (h, w), coarse first; N = Σ h·w over them."""
        return (grid,)

    def depths(self, batch: int, device: torch.device) -> Tensor | None:
        """Draw the number of scales (B,) that each sample keeps in training; None where no scale is ever dropped.

        :class:`FactorizedQuantizer` draws once and passes the numbers to ``forward`` of all branches.
        """
        return None

    def reset_parameters(self) -> None:
        """Redraw the initial weights; :class:`FactorizedQuantizer` does so for each copy of its branch."""
        if any(True for _ in self.parameters()):
            raise NotImplementedError(f"{type(self).__name__} has parameters and must define reset_parameters")

    def check_codes(self, codes: Tensor, grid: tuple[int, int]) -> None:
        """Raise UserError unless codes (B, k, N) have this quantizer's k, and its N over ``grid``."""
        self.check_sub_codes(codes)
        positions = sum(height * width for height, width in self.scales(grid))
        if codes.shape[2] != positions:
            raise UserError(
                f"a grid of {grid[0]} × {grid[1]} has {positions} positions, got codes of {codes.shape[2]}: "
                "pass the grid (H/f, W/f) of the images that the codes come from"
            )

    def check_sub_codes(self, codes: Tensor) -> None:
        """Raise UserError unless codes (B, k, n) have this quantizer's k."""
        if codes.shape[1] != len(self.codebook_sizes):
            raise UserError(f"expected {len(self.codebook_sizes)} sub-codes per position, got {codes.shape[1]}")
