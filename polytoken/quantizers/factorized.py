"""Factorized quantization: k copies of one quantizer, one a subspace (FQGAN, arXiv 2411.16681; SSQ section 3.1)."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from polytoken.quantizers.base import Quantizer
from polytoken.ranges import at_least
from polytoken.specs import Encoding


class FactorizedQuantizer(Quantizer):
    """k branches with codebooks of their own, concatenated (SSQ eqs. 5 and 6, FQGAN eq. 5, ImageFolder eq. 1).

    With :class:`VectorQuantizer` as branch, 2, 3 and 4 branches are FQGAN-Dual and -Triple and SSQ-Quad. The losses of
    the branches are summed, not averaged, as released.

    Args:
        branch: quantizer of one subspace. It becomes the first branch; the others are copies with weights drawn afresh.
        num_branches: k. Order: visual, then mid-level, then high-level.
    """

    def __init__(self, branch: Quantizer, num_branches: int = 2) -> None:
        at_least(1, self, num_branches=num_branches)
        super().__init__(
            branch.in_subspaces * num_branches,
            branch.subspace_channels * num_branches,
            branch.codebook_sizes * num_branches,
        )
        copies = [copy.deepcopy(branch) for _ in range(num_branches - 1)]
        for other in copies:
            other.reset_parameters()
        self.branches = nn.ModuleList([branch, *copies])

    def forward(self, features: Tensor) -> Encoding:
        """Features (B, k·in_channels of a branch, h, w) to the codes, losses and concatenated vectors of all branches.

        ``kept`` marks the samples that every branch kept whole.
        """
        subspaces = features.split([branch.in_channels for branch in self._branches()], dim=1)
        depths = self._branches()[0].depths(features.shape[0], features.device)
        shared = () if depths is None else (depths,)
        encodings: list[Encoding] = [branch(one, *shared) for branch, one in zip(self.branches, subspaces, strict=True)]
        losses: dict[str, Tensor] = {}
        for encoding in encodings:
            for name, value in encoding.losses.items():
                losses[name] = losses[name] + value if name in losses else value
        codes = [encoding.codes for encoding in encodings if encoding.codes is not None]
        kept = [encoding.kept for encoding in encodings if encoding.kept is not None]
        return Encoding(
            codes=torch.cat(codes, dim=1) if codes else None,
            quantized=torch.cat([encoding.quantized for encoding in encodings], dim=1),
            subspaces=tuple(one for encoding in encodings for one in encoding.subspaces),
            losses=losses,
            latents=tuple(one for encoding in encodings for one in encoding.latents),
            code_vectors=tuple(one for encoding in encodings for one in encoding.code_vectors),
            kept=torch.stack(kept).all(dim=0) if kept else None,
        )

    def embed_codes(self, codes: Tensor, grid: tuple[int, int]) -> Tensor:
        """Codes (B, Σ sub-codes of the branches, N) to (B, C, h, w)."""
        self.check_codes(codes, grid)
        split = codes.split([len(branch.codebook_sizes) for branch in self._branches()], dim=1)
        return torch.cat(
            [branch.embed_codes(one, grid) for branch, one in zip(self._branches(), split, strict=True)], dim=1
        )

    def codebooks(self) -> tuple[Tensor, ...]:
        return tuple(table for branch in self._branches() for table in branch.codebooks())

    def partial_sums(self, codes: Tensor, grid: tuple[int, int]) -> Iterator[Tensor]:
        self.check_sub_codes(codes)
        split = codes.split([len(branch.codebook_sizes) for branch in self._branches()], dim=1)
        sums = [branch.partial_sums(one, grid) for branch, one in zip(self._branches(), split, strict=True)]
        for parts in zip(*sums, strict=True):
            yield torch.cat(parts, dim=1)

    def snap(self, quantized: Tensor) -> Tensor:
        """Concatenated vectors (B, C, h, w) to the nearest ones of each branch."""
        split = quantized.split([branch.out_channels for branch in self._branches()], dim=1)
        return torch.cat([branch.snap(one) for branch, one in zip(self._branches(), split, strict=True)], dim=1)

    def scales(self, grid: tuple[int, int]) -> tuple[tuple[int, int], ...]:
        return self._branches()[0].scales(grid)

    def reset_parameters(self) -> None:
        for branch in self._branches():
            branch.reset_parameters()

    def _branches(self) -> list[Quantizer]:
        return list(self.branches)  # type: ignore[arg-type]
