"""Reconstruction of a foundation model's features: L_deep and L_shallow (Ideal, arXiv 2606.11096, eqs. 9, 10)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from polytoken.errors import UserError
from polytoken.losses.base import LossTerm, TokenizerStep
from polytoken.precision import full_precision
from polytoken.ranges import at_least


class FeatureReconstruction(LossTerm):
    """‖f̂ − f‖² + (1 − cos(f̂, f)) of one feature that the tokenizer reads and decodes (Ideal eqs. 9 and 10).

    Means over images and positions; the square is a mean over channels too, as released, where the paper has a norm.

    Args:
        feature: ``deep`` or ``shallow``.
        weight: factor in the total; 1 in Ideal.
        start_step: updates before which the term is left out.
        mse: factor of the square.
        cosine: factor of one minus the cosine.
        normalize: layer-normalise the target without parameters, as released for the shallow feature: a few channels
            dominate the raw output of a block.
    """

    def __init__(
        self,
        feature: str,
        weight: float = 1.0,
        start_step: int = 0,
        mse: float = 1.0,
        cosine: float = 1.0,
        normalize: bool = False,
    ) -> None:
        super().__init__(weight, start_step)
        at_least(0, self, mse=mse, cosine=cosine)
        if mse == cosine == 0:
            raise UserError(f"the reconstruction of feature {feature!r} has mse 0 and cosine 0: set one above 0")
        self.feature = feature
        self.mse = mse
        self.cosine = cosine
        self.normalize = normalize

    @property
    def reads(self) -> frozenset[str]:
        """The feature, which the tokenizer must decode."""
        return frozenset({f"features:{self.feature}"})

    def forward(self, step: TokenizerStep) -> Tensor:
        decoded, target = step.decoded.features[self.feature], step.encoding.features[self.feature].detach()
        with full_precision(decoded.device):
            decoded, target = decoded.float().movedim(1, -1), target.float().movedim(1, -1)
            if self.normalize:
                target = functional.layer_norm(target, target.shape[-1:])
            square = functional.mse_loss(decoded, target)
            cosine = functional.cosine_similarity(decoded, target, dim=-1).mean()
            return self.mse * square + self.cosine * (1 - cosine)
