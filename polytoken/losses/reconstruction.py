"""Pixel reconstruction, L_rec of SSQ eq. 2 and FQGAN eq. 2 (VQGAN, arXiv 2012.09841)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional

from polytoken.losses.base import LossTerm, TokenizerStep


class Reconstruction(LossTerm):
    """Mean over all pixels and channels of |x̂ − x| (l1) or (x̂ − x)² (l2; LlamaGen and FQGAN).

    Args:
        norm: l1 or l2.
        weight: factor in the total.
        start_step: updates before which the term is left out.
    """

    is_reconstruction = True

    def __init__(self, norm: Literal["l1", "l2"] = "l2", weight: float = 1.0, start_step: int = 0) -> None:
        super().__init__(weight, start_step)
        self.norm = norm

    def forward(self, step: TokenizerStep) -> Tensor:
        distance = functional.l1_loss if self.norm == "l1" else functional.mse_loss
        return distance(step.decoded.image.float(), step.images.float())
