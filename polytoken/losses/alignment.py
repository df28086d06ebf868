"""Semantic feature alignment: a subspace predicts a foundation model (FQGAN section 3.2.2, SSQ section 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from polytoken.distributed import gather_over_ranks
from polytoken.errors import UserError
from polytoken.losses.base import LossTerm, TokenizerStep
from polytoken.losses.predictors import ClassTokenPredictor, PatchPredictor
from polytoken.teachers.teacher import Teacher
from polytoken.tokenizers import Tokenizer


class FeatureAlignment(LossTerm):
    """One subspace predicts one teacher: its class token by contrast in the batch, its patches by cosine or MSE.

    The term is the weighted sum of the three. FQGAN and SSQ use the contrastive one alone, at temperature 1 with local
    negatives: −mean_i log(exp(p̂_i·t̂_i / τ) / Σ_j exp(p̂_i·t̂_j / τ)), whose values therefore compare only at equal
    batch sizes (chance is ln B).

    Args:
        teacher: the name under which ``objective.teachers`` has it.
        subspace: the guided subspace, from 0; visual, then mid-level, then high-level.
        weight: factor in the total; λ_2 = 0.5 as released.
        start_step: updates before which the term is left out.
        contrastive: factor of the contrastive loss on the class token.
        patch_cosine: factor of 1 − cosine, averaged over patches.
        patch_mse: factor of the mean square, against features layer-normalised without parameters (raw ones have
            channels that outweigh all others).
        temperature: τ.
        gather: take the other ranks' images as negatives, too; every rank then needs the same batch size.
        depth: transformer blocks of the class-token predictor.
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
    ) -> None:
        super().__init__(weight, start_step)
        if max(contrastive, patch_cosine, patch_mse) <= 0 or min(contrastive, patch_cosine, patch_mse) < 0:
            raise UserError("an alignment term needs contrastive, patch_cosine or patch_mse above 0, and none below")
        if temperature <= 0:
            raise UserError(f"temperature of an alignment term must be positive, got {temperature}")
        self.teacher = teacher
        self.subspace = subspace
        self.contrastive = contrastive
        self.patch_cosine = patch_cosine
        self.patch_mse = patch_mse
        self.temperature = temperature
        self.gather = gather
        self.depth = depth

    @property
    def reads_patches(self) -> bool:
        """Whether the teacher's patches are compared, so that its grid must be the tokens'."""
        return self.patch_cosine > 0 or self.patch_mse > 0

    def connect(self, tokenizer: Tokenizer, teachers: dict[str, Teacher]) -> None:
        """Build the predictors at the widths of the subspace and the teacher.

        Raises:
            ValueError: if there is no such teacher or subspace, or the grids cannot be laid over each other.
        """
        if self.teacher not in teachers:
            known = ", ".join(teachers) or "none"
            raise UserError(f"an alignment term asks for teacher {self.teacher!r}; objective.teachers has {known}")
        parts = tokenizer.subspace_channels
        if not 0 <= self.subspace < len(parts):
            raise UserError(
                f"the alignment to teacher {self.teacher!r} guides subspace {self.subspace}, but the tokenizer has "
                f"{len(parts)}, counted from 0: set subspace to 0 … {len(parts) - 1}"
            )
        teacher = teachers[self.teacher]
        teacher.check()
        channels = parts[self.subspace]
        if self.contrastive > 0:
            self.class_predictor = ClassTokenPredictor(channels, teacher.width, tokenizer.grid, self.depth)
        if self.reads_patches:
            if teacher.grid != tokenizer.grid:
                side = tokenizer.grid[0] * teacher.patch_size
                remedy = "train one of that grid" if teacher.name == "stand_in" else f"set its image_size to {side}"
                raise UserError(
                    f"teacher {self.teacher!r} has a grid of {teacher.grid[0]} × {teacher.grid[1]} patches and the "
                    f"tokens one of {tokenizer.grid[0]} × {tokenizer.grid[1]}: {remedy}, or set patch_cosine and "
                    "patch_mse to 0"
                )
            self.patch_predictor = PatchPredictor(channels, teacher.width)

    def forward(self, step: TokenizerStep) -> Tensor:
        """Scalar, float32."""
        features = step.teacher_features[self.teacher]
        part = step.encoding.subspaces[self.subspace]
        loss = part.new_zeros((), dtype=torch.float32)
        if self.contrastive > 0:
            prediction = self.class_predictor(part).float()
            loss = loss + self.contrastive * contrastive_loss(prediction, features.cls, self.temperature, self.gather)
        if self.reads_patches:
            prediction = self.patch_predictor(part).float()
            cosine = functional.cosine_similarity(prediction, features.patches, dim=-1)
            targets = functional.layer_norm(features.patches, features.patches.shape[-1:])
            loss = loss + self.patch_cosine * (1 - cosine).mean()
            loss = loss + self.patch_mse * functional.mse_loss(prediction, targets)
        return loss


def contrastive_loss(predictions: Tensor, targets: Tensor, temperature: float, gather: bool) -> Tensor:
    """Cross-entropy of each prediction (B, D) against its own of the targets (B, D), both scaled to unit length.

    One direction: a row is a prediction, its columns all targets; with ``gather`` those of all ranks.

    Raises:
        ValueError: if there is only one target.
    """
    with torch.autocast(predictions.device.type, enabled=False):  # a product in bf16 would round logits to 1/256 of 1/τ
        predictions = functional.normalize(
            predictions.to(torch.promote_types(predictions.dtype, torch.float32)), dim=-1
        )
        targets = functional.normalize(targets.to(predictions.dtype), dim=-1)
        targets, offset = gather_over_ranks(targets) if gather else (targets, 0)
        if len(targets) < 2:
            raise UserError(
                "contrastive alignment has nothing to contrast in a batch of one: set batch_size to 2 or more"
            )
        logits = predictions @ targets.T / temperature
        return functional.cross_entropy(logits, torch.arange(len(predictions), device=logits.device) + offset)
