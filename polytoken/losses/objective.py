"""A tokenizer's objective: named terms, so that a config replaces or drops one by its name (FQGAN eq. 8)."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from polytoken.errors import UserError
from polytoken.losses.adversarial import Adversarial
from polytoken.losses.alignment import FeatureAlignment
from polytoken.losses.base import LossTerm, TokenizerStep
from polytoken.teachers.teacher import Teacher
from polytoken.tokenizers import Tokenizer


@final
class TokenizerObjective(nn.Module):
    """Weighted sum of the named terms that are present, the quantizer's own losses, and the adversarial block.

    A term that is null or of weight 0 is off.

    Args:
        reconstruction: pixels.
        perceptual: features of a frozen network.
        disentanglement: between subspaces.
        alignment_mid: a subspace to a mid-level foundation model (DINOv2).
        alignment_high: a subspace to a high-level foundation model (CLIP).
        adversarial: discriminator and its losses.
        teachers: frozen foundation models, under the names that alignment terms call them by; one that no term reads
            is never loaded for training.
    """

    def __init__(
        self,
        reconstruction: LossTerm | None = None,
        perceptual: LossTerm | None = None,
        disentanglement: LossTerm | None = None,
        alignment_mid: LossTerm | None = None,
        alignment_high: LossTerm | None = None,
        adversarial: Adversarial | None = None,
        teachers: dict[str, Teacher] | None = None,
    ) -> None:
        super().__init__()
        named = {
            "reconstruction": reconstruction,
            "perceptual": perceptual,
            "disentanglement": disentanglement,
            "alignment_mid": alignment_mid,
            "alignment_high": alignment_high,
        }
        # The command line cannot say null: weight 0 is how it switches a term off, and nothing of it is built.
        self.terms = nn.ModuleDict({name: term for name, term in named.items() if term is not None and term.weight})
        self.adversarial = adversarial if adversarial is not None and adversarial.weight != 0 else None
        self.teachers = dict(teachers or {})

    @property
    def alignments(self) -> dict[str, FeatureAlignment]:
        """The alignment terms, by name."""
        return {name: term for name, term in self.terms.items() if isinstance(term, FeatureAlignment)}

    def connect(self, tokenizer: Tokenizer) -> None:
        """Check every term against the tokenizer, and build what has its sizes.

        Raises:
            ValueError: if a term does not fit the tokenizer.
        """
        for every in self.terms.values():
            every.connect(tokenizer, self.teachers)  # type: ignore[operator]

    def prepare(self, device: torch.device) -> None:
        """Let every term load what it leans on, before the first step."""
        for term in self.terms.values():
            term.prepare(device)  # type: ignore[operator]
        for term in self.alignments.values():
            self.teachers[term.teacher].prepare(device)

    def forward(self, step: TokenizerStep) -> tuple[Tensor, dict[str, Tensor]]:
        """The generator's total loss, and every part for the log: terms unweighted, the rest as it counts."""
        needed = {term.teacher for term in self.alignments.values() if step.global_step >= term.start_step}
        step.teacher_features = {name: self.teachers[name].features(step.images) for name in sorted(needed)}
        parts: dict[str, Tensor] = {}
        for name, term in self.terms.items():
            if step.global_step >= term.start_step:  # type: ignore[operator]
                parts[name] = term(step)
        weighted = {name: self.terms[name].weight * value for name, value in parts.items()}  # type: ignore[operator]
        parts.update(step.encoding.losses)
        weighted.update(step.encoding.losses)
        if not weighted:
            raise UserError("the objective is empty: give it at least one term with a weight above 0")
        total = torch.stack([value.float() for value in weighted.values()]).sum()
        if self.adversarial is not None and self.adversarial.active(step.global_step):
            pixel = [weighted[name] for name in ("reconstruction", "perceptual") if name in weighted]
            parts["adversarial"] = self.adversarial.generator_loss(step, sum(pixel, start=torch.zeros_like(total)))
            total = total + parts["adversarial"]
        return total, parts
