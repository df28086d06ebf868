"""Disentanglement between subspaces (SSQ eq. 8, FQGAN eq. 7)."""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor
from torch.nn import functional

from polytoken.errors import UserError
from polytoken.losses.base import LossTerm, TokenizerStep
from polytoken.teachers import Teacher
from polytoken.tokenizers import Tokenizer


class Disentanglement(LossTerm):
    """Squared cosine of two subspaces at the same position, averaged over images, positions and pairs of subspaces.

    The papers write (1/n) Σ_i (q_1ᵀ q_2)² over n samples, for two subspaces (SSQ eq. 8, FQGAN eq. 7). Our reading:
    (1/n) Σ is the mean over the positions of all images, and more than two subspaces take the mean over unordered
    pairs. Independent codes of d dimensions score 1/d. By default the gradient reaches the encoder alone, through the
    straight-through outputs, as in the released FQGAN.

    Args:
        weight: factor in the total; λ_1 = 0.1 in FQGAN.
        start_step: updates before which the term is left out.
        through_codebooks: let the gradient reach the code vectors as well.
    """

    def __init__(self, weight: float = 0.1, start_step: int = 0, through_codebooks: bool = False) -> None:
        super().__init__(weight, start_step)
        self.through_codebooks = through_codebooks

    def connect(self, tokenizer: Tokenizer, teachers: dict[str, Teacher]) -> None:
        """Reject a tokenizer with fewer than two subspaces."""
        if len(tokenizer.subspace_channels) < 2:
            raise UserError("disentanglement needs at least two subspaces: set its weight to 0")

    def forward(self, step: TokenizerStep) -> Tensor:
        """Scalar in [0, 1], float32."""
        subspaces = step.encoding.subspaces
        if self.through_codebooks:
            vectors = step.encoding.code_vectors
            if not vectors:
                raise UserError(
                    "this quantizer has no code vectors to train: set disentanglement's through_codebooks to false"
                )
            subspaces = tuple(
                subspace + code - code.detach() for subspace, code in zip(subspaces, vectors, strict=True)
            )
        units = [functional.normalize(subspace.float(), dim=1) for subspace in subspaces]
        cosines = [(first * second).sum(1) for first, second in combinations(units, 2)]
        return torch.stack([cosine.square().mean() for cosine in cosines]).mean()
