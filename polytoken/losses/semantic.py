"""Semantic regularization L_clip: the pooled semantic branch and a class token pick each other (ImageFolder 3.1)."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from polytoken.distributed import gather_with_gradient
from polytoken.errors import UserError
from polytoken.losses.base import LossTerm, TokenizerStep
from polytoken.precision import full_precision
from polytoken.ranges import above, one_of
from polytoken.teachers import Teacher
from polytoken.tokenizers import Tokenizer

Projection = Literal["own", "shared"]


class SemanticContrast(LossTerm):
    """Symmetric contrast of a subspace, averaged over its positions, with the teacher's class token.

    L_clip of ImageFolder eq. 4. The images of all ranks are one batch. Images that lost scales to quantizer dropout
    count neither as rows nor as negatives. Values compare only at equal batch sizes (chance is ln B).

    The paper calls the loss CLIP-style. The released MSVR10P2 takes plain inner products at temperature 1 and maps the
    class token by the tokenizer's own ``quant_conv`` (``normalize: false``, ``temperature: 1``, ``projection:
    shared``): this target is trained as well, and is free to shrink.

    Args:
        teacher: name of the teacher in ``objective.teachers``.
        subspace: the guided subspace, from 0, or backwards from -1; ImageFolder's semantic branch is the last one. A
            second term guides a second one (Table 3, row 5).
        weight: factor in the total; λ_clip = 0.1 in ImageFolder.
        start_step: updates before which the term is left out.
        normalize: compare directions.
        temperature: τ, divisor of the inner products; 0.07 is CLIP's initial value.
        projection: ``own`` maps the subspace to the teacher's width by a linear layer of the term, so that the target
            stays fixed; ``shared`` maps the class token to the subspace's width by the tokenizer's ``quant_conv``.
    """

    def __init__(
        self,
        teacher: str,
        subspace: int = -1,
        weight: float = 0.1,
        start_step: int = 0,
        normalize: bool = True,
        temperature: float = 0.07,
        projection: Projection = "own",
    ) -> None:
        super().__init__(weight, start_step)
        above(0, self, temperature=temperature)
        one_of(self, get_args(Projection), projection=projection)
        self.teacher = teacher
        self.subspace = subspace
        self.normalize = normalize
        self.temperature = temperature
        self.projection = projection
        self._quant_conv: tuple[nn.Conv2d, ...] = ()  # a tuple, because the tokenizer owns it

    @property
    def reads(self) -> frozenset[str]:
        """The teacher's class token."""
        return frozenset({f"teacher:{self.teacher}"})

    def connect(self, tokenizer: Tokenizer, teachers: dict[str, Teacher]) -> None:
        """Build the projection, or find the tokenizer's.

        Raises:
            UserError: there is no such subspace, or no ``quant_conv`` from the teacher's width to that of the subspace.
        """
        widths, width = tokenizer.subspace_channels, teachers[self.teacher].width
        if not -len(widths) <= self.subspace < len(widths):
            raise UserError(
                f"the contrast with teacher {self.teacher!r} guides subspace {self.subspace}, but the tokenizer has "
                f"{len(widths)}: set subspace to 0 … {len(widths) - 1}, or to -1 for the last"
            )
        channels = widths[self.subspace]
        if self.projection == "own":
            self.linear = nn.Linear(channels, width)
            return
        shared = getattr(tokenizer, "quant_conv", None)
        if not isinstance(shared, nn.Conv2d) or (shared.in_channels, shared.out_channels) != (width, channels):
            raise UserError(
                f"the contrast with teacher {self.teacher!r} shares the tokenizer's quant_conv, but "
                f"{type(tokenizer).__name__} has none from {width} channels, the teacher's, to {channels}, the "
                "subspace's: set projection to own"
            )
        self._quant_conv = (shared,)

    def forward(self, step: TokenizerStep) -> Tensor:
        pooled, target = step.encoding.subspaces[self.subspace], step.teacher_features[self.teacher].cls
        with full_precision(pooled.device):
            pooled, target = pooled.float().mean((2, 3)), target.float()
            if self.projection == "own":
                pooled = self.linear(pooled)
            else:
                target = self._quant_conv[0](target[:, :, None, None]).flatten(1)
            kept = step.encoding.kept
            kept = pooled.new_ones(len(pooled), dtype=torch.bool) if kept is None else kept
            return symmetric_contrast(pooled, target, kept, self.temperature, self.normalize)


def symmetric_contrast(features: Tensor, targets: Tensor, kept: Tensor, temperature: float, normalize: bool) -> Tensor:
    """Mean cross-entropy of kept rows of features against all kept targets and the reverse; a scalar.

    All ranks compute the loss of all rows, and the gradient of a rank's rows is summed over ranks: averaged by DDP, it
    is that of one process with the whole batch. Nothing is read from the device. No kept row makes 0.

    Args:
        features: (B, D); B is equal on all ranks.
        targets: (B, D).
        kept: (B,) bool.
        temperature: divisor of the inner products.
        normalize: scale rows to unit length.

    Raises:
        UserError: all ranks together hold one row.
    """
    if normalize:
        features, targets = functional.normalize(features, dim=-1), functional.normalize(targets, dim=-1)
    # one collective for the three
    rows = gather_with_gradient(torch.cat([features, targets, kept[:, None].to(features)], dim=1))
    if len(rows) < 2:
        raise UserError("semantic contrast has no negatives in a batch of one: set batch_size to 2 or more")
    features, targets, flags = rows.split([features.shape[1], targets.shape[1], 1], dim=1)
    kept = flags[:, 0] > 0
    own = torch.arange(len(rows), device=rows.device)
    # a dropped row keeps its own entry alone, so that its cross-entropy and gradient are 0
    compared = (kept[:, None] & kept) | (own[:, None] == own)
    logits = (features @ targets.T / temperature).masked_fill(~compared, -torch.inf)
    losses = (
        functional.cross_entropy(logits, own, reduction="none"),
        functional.cross_entropy(logits.T, own, reduction="none"),
    )
    return (losses[0] + losses[1]).sum() / (2 * kept.sum().clamp_min(1))
