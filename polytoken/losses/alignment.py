"""Semantic feature alignment L_rep: a subspace predicts a foundation model (FQGAN section 3.2.2, SSQ section 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from polytoken.distributed import gather_over_ranks
from polytoken.errors import UserError
from polytoken.losses.base import LossTerm, TokenizerStep, teacher_key
from polytoken.losses.predictors import ClassTokenPredictor, PatchPredictor
from polytoken.precision import full_precision
from polytoken.ranges import above, at_least
from polytoken.teachers import Teacher
from polytoken.tokenizers import Tokenizer


class FeatureAlignment(LossTerm):
    """One subspace predicts a block of a teacher: the class token by contrast in the batch, patches by cosine or MSE.

    The term, L_rep of FQGAN eq. 8, is the weighted sum of the three. FQGAN and SSQ use the contrastive one alone, at
    temperature 1 with local negatives: −mean_i log(exp(p̂_i·t̂_i / τ) / Σ_j exp(p̂_i·t̂_j / τ)). Its values compare only
    at equal batch sizes (chance is ln B).

    Args:
        teacher: name of the teacher in ``objective.teachers``.
        subspace: the guided subspace, from 0: visual, then mid-level, then high-level.
        weight: factor in the total; λ_2 = 0.5 in FQGAN.
        start_step: updates before which the term is left out.
        contrastive: factor of the contrastive loss of the class token.
        patch_cosine: factor of 1 − cosine, averaged over patches.
        patch_mse: factor of the mean square to features layer-normalised without parameters, since few channels
            dominate raw ones.
        temperature: τ.
        gather: use the images of the other ranks as negatives too; every rank then needs the same batch size, and each
            step reads the sizes from the device.
        depth: transformer blocks of the class-token predictor.
        block: block of the teacher, counted from 1; None is the teacher's own.
    """

    def __init__(
        self,
        teacher: str,
        subspace: int,
        weight: float = 0.5,
        start_step: int = 0,
        contrastive: float = 1.0,
        patch_cosine: float = 0.0,
        patch_mse: float = 0.0,
        temperature: float = 1.0,
        gather: bool = False,
        depth: int = 3,
        block: int | None = None,
    ) -> None:
        super().__init__(weight, start_step)
        at_least(1, self, depth=depth)
        at_least(0, self, contrastive=contrastive, patch_cosine=patch_cosine, patch_mse=patch_mse)
        above(0, self, temperature=temperature)
        if not (contrastive or patch_cosine or patch_mse):
            raise UserError("an alignment term needs contrastive, patch_cosine or patch_mse above 0")
        self.teacher = teacher
        self.subspace = subspace
        self.contrastive = contrastive
        self.patch_cosine = patch_cosine
        self.patch_mse = patch_mse
        self.temperature = temperature
        self.gather = gather
        self.depth = depth
        self.block = block
        self.key = teacher_key(teacher, block)

    @property
    def reads(self) -> frozenset[str]:
        """The features of one block of the teacher."""
        return frozenset({f"teacher:{self.key}"})

    @property
    def reads_patches(self) -> bool:
        """Return True if patches are compared, so that the teacher's grid must be that of the tokens."""
        return self.patch_cosine > 0 or self.patch_mse > 0

    def connect(self, tokenizer: Tokenizer, teachers: dict[str, Teacher]) -> None:
        """Build the predictors at the widths of the subspace and the teacher.

        Raises:
            UserError: there is no such subspace, or patches are compared and the grids differ.
        """
        widths = tokenizer.subspace_channels
        if not 0 <= self.subspace < len(widths):
            raise UserError(
                f"the alignment to teacher {self.teacher!r} guides subspace {self.subspace}, but the tokenizer has "
                f"{len(widths)}, counted from 0: set subspace to 0 … {len(widths) - 1}"
            )
        teacher = teachers[self.teacher]
        channels, width, grid = widths[self.subspace], teacher.width_at(self.block), teacher.grid_at(self.block)
        if self.contrastive > 0:
            self.class_predictor = ClassTokenPredictor(channels, width, tokenizer.grid, self.depth)
        if self.reads_patches:
            if grid != tokenizer.grid:
                side = tokenizer.grid[0] * teacher.image_size // grid[0]
                remedy = "train one of that grid" if teacher.name == "stand_in" else f"set its image_size to {side}"
                raise UserError(
                    f"teacher {self.teacher!r} has a grid of {grid[0]} × {grid[1]} patches and the "
                    f"tokens one of {tokenizer.grid[0]} × {tokenizer.grid[1]}: {remedy}, or set patch_cosine and "
                    "patch_mse to 0"
                )
            self.patch_predictor = PatchPredictor(channels, width)

    def forward(self, step: TokenizerStep) -> Tensor:
        features = step.teacher_features[self.key]
        subspace = step.encoding.subspaces[self.subspace]
        loss = subspace.new_zeros((), dtype=torch.float32)
        if self.contrastive > 0:
            prediction = self.class_predictor(subspace).float()
            loss = loss + self.contrastive * contrastive_loss(prediction, features.cls, self.temperature, self.gather)
        if self.reads_patches:
            prediction = self.patch_predictor(subspace).float()
            cosine = functional.cosine_similarity(prediction, features.patches, dim=-1)
            targets = functional.layer_norm(features.patches, features.patches.shape[-1:])
            loss = loss + self.patch_cosine * (1 - cosine).mean()
            loss = loss + self.patch_mse * functional.mse_loss(prediction, targets)
        return loss


def contrastive_loss(predictions: Tensor, targets: Tensor, temperature: float, gather: bool) -> Tensor:
    """Mean cross-entropy of each prediction against its own of all targets, both scaled to unit length; a scalar.

    One direction: a row of logits is a prediction, its columns are the targets.

    Args:
        predictions: (B, D).
        targets: (B, D), without gradient.
        temperature: divisor of the cosines.
        gather: take the targets of all ranks as columns.

    Raises:
        UserError: there is only one target.
    """
    with full_precision(predictions.device):  # bf16 would round logits to 1/256 of 1/τ, TF32 to 1/1024
        predictions = functional.normalize(
            predictions.to(torch.promote_types(predictions.dtype, torch.float32)), dim=-1
        )
        targets = functional.normalize(targets.to(predictions.dtype), dim=-1)
        targets, offset = gather_over_ranks(targets) if gather else (targets, 0)
        if len(targets) < 2:
            raise UserError("contrastive alignment has no negatives in a batch of one: set batch_size to 2 or more")
        logits = predictions @ targets.T / temperature
        return functional.cross_entropy(logits, torch.arange(len(predictions), device=logits.device) + offset)
