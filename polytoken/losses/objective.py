"""Objective of tokenizers: named loss terms, so that a config replaces or drops one by its name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import cast, final

import torch
from torch import Tensor, nn

from polytoken.errors import UserError
from polytoken.losses.adversarial import Adversarial
from polytoken.losses.base import LossTerm, TokenizerStep, teacher_key
from polytoken.losses.perceptual import PerceptualTerm
from polytoken.teachers import Teacher, TeacherFeatures
from polytoken.tokenizers import Tokenizer

# other parts of the logged losses: sums, the quantizers' and the discriminator's own
RESERVED = (
    *("loss", "adversarial", "discriminator"),
    *("codebook", "commitment", "entropy", "kl"),
    *("logits_real", "logits_fake", "lecam", "consistency"),
)


@final
class TokenizerObjective(nn.Module):
    """Weighted sum of the named terms, the quantizer's own losses, and the adversarial block.

    L_VQGAN = L_rec + L_VQ + L_perceptual + L_GAN (SSQ eq. 2, FQGAN eq. 2) is the sum of ``reconstruction``, the
    quantizer's losses, ``perceptual`` and ``adversarial``; L_total = L_VQGAN + λ_1 L_disentangle + λ_2 L_rep (FQGAN
    eq. 8) adds ``disentanglement`` and the alignment terms, whose weights are λ_1 and λ_2. L_AE (Ideal eq. 5)
    is L_VQGAN without L_VQ, and Ideal's total (Ideal eq. 11) adds the reconstruction of features, as ``terms``.

    A term that is null or has weight 0 is off, and none of it is built.

    Args:
        reconstruction: distance of pixels.
        perceptual: distance of the features of a frozen network.
        disentanglement: between subspaces.
        alignment_mid: a subspace to a mid-level foundation model (DINOv2).
        alignment_high: a subspace to a high-level foundation model (CLIP).
        adversarial: discriminator and its losses.
        teachers: frozen foundation models by the names that terms read them under; one that no term reads is never
            loaded for training.
        terms: further terms by name. A second config replaces this mapping, but merges the named arguments above.

    Raises:
        UserError: a further term has the name of another part, or the adaptive weight has nothing to compare with.
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
        terms: dict[str, LossTerm | None] | None = None,
    ) -> None:
        super().__init__()
        named = {
            "reconstruction": reconstruction,
            "perceptual": perceptual,
            "disentanglement": disentanglement,
            "alignment_mid": alignment_mid,
            "alignment_high": alignment_high,
        }
        if taken := sorted((terms or {}).keys() & {*named, *RESERVED}):
            raise UserError(f"objective.terms has a term named {taken[0]!r}, the name of another part: rename it")
        # Weight 0 switches a term off from the command line, which cannot say null.
        every = {**named, **(terms or {})}
        self.terms = nn.ModuleDict({name: term for name, term in every.items() if term is not None and term.weight})
        self.adversarial = adversarial if adversarial is not None and adversarial.weight != 0 else None
        self.teachers = dict(teachers or {})
        self._check_adaptive()

    def connect(self, tokenizer: Tokenizer) -> None:
        """Check every term against the tokenizer and its teachers, and build parts that need their sizes.

        Raises:
            UserError: a term reads an unknown teacher, or features that the tokenizer does not decode, or does not fit
                it otherwise; or its images are too small for the discriminator.
        """
        for name, term in self._terms().items():
            for read in term.reads:
                kind, _, feature = read.partition(":")
                if kind == "features" and feature not in tokenizer.feature_names:
                    known = ", ".join(tokenizer.feature_names) or "none"
                    raise UserError(f"{name} reads features {feature!r}, and the tokenizer decodes {known}")
            for teacher in _teacher_blocks([term]):
                if teacher not in self.teachers:
                    known = ", ".join(self.teachers) or "none"
                    raise UserError(f"{name} reads teacher {teacher!r}, and objective.teachers has {known}")
        for teacher, blocks in _teacher_blocks(self._terms().values()).items():
            self.teachers[teacher].check(blocks)
        for term in self._terms().values():
            term.connect(tokenizer, self.teachers)
        if self.adversarial is not None:
            self.adversarial.discriminator.check_size(tokenizer.image_size)

    def prepare(self, device: torch.device) -> None:
        """Load the frozen networks of all terms and the adversarial block, before the first step."""
        for term in self._terms().values():
            term.prepare(device)
        for teacher in _teacher_blocks(self._terms().values()):
            self.teachers[teacher].prepare(device)
        if self.adversarial is not None:
            self.adversarial.discriminator.prepare(device)

    @property
    def networks(self) -> frozenset[Path]:
        """Files of the frozen networks that training reads, by which no image should be measured."""
        perceptual = {Path(term.weights) for term in self._terms().values() if isinstance(term, PerceptualTerm)}
        teachers = (self.teachers[name] for name in _teacher_blocks(self._terms().values()) if name in self.teachers)
        trained_on = frozenset(perceptual | {teacher.file for teacher in teachers})
        return trained_on if self.adversarial is None else trained_on | self.adversarial.discriminator.networks

    def frozen_identities(self) -> dict[str, str]:
        """Identity of each frozen network that training reads, by name; loads them."""
        terms = self._terms()
        identities = {f"teacher {name}": self.teachers[name].identity for name in _teacher_blocks(terms.values())}
        identities |= {name: term.identity for name, term in terms.items() if isinstance(term, PerceptualTerm)}
        return identities | (self.adversarial.discriminator.frozen_identities() if self.adversarial is not None else {})

    def forward(self, step: TokenizerStep) -> tuple[Tensor, dict[str, Tensor]]:
        """Total loss of the autoencoder, and its parts by name for the log.

        All are float32 scalars. Terms are unweighted in the log; the other parts are weighted.

        Raises:
            UserError: no term is active, or a term and a loss of the quantizer have one name.
        """
        active = {name: term for name, term in self._terms().items() if term.active(step.global_step)}
        if taken := sorted(self._terms().keys() & step.encoding.losses.keys()):
            raise UserError(f"the objective has a term named {taken[0]!r}, the name of a quantizer's loss: rename one")
        step.teacher_features = self._teacher_features(step.images, active.values())
        parts = {name: term(step) for name, term in active.items()}
        weighted = {name: active[name].weight * value for name, value in parts.items()} | step.encoding.losses
        parts |= step.encoding.losses
        if not weighted:
            raise UserError("the objective is empty: give it at least one term with a weight above 0")
        total = torch.stack([value.float() for value in weighted.values()]).sum()
        if self.adversarial is not None and self.adversarial.active(step.global_step):
            reconstruction = [weighted[name] for name, term in active.items() if term.is_reconstruction]
            parts["adversarial"] = self.adversarial.generator_loss(
                step, sum(reconstruction, start=torch.zeros_like(total))
            )
            total = total + parts["adversarial"]
        return total, parts

    def _check_adaptive(self) -> None:
        """Raise UserError if the adaptive weight compares with terms that are off, or start after the discriminator."""
        if (block := self.adversarial) is None or not block.adaptive:
            return
        if not any(term.is_reconstruction and term.active(block.start_step) for term in self._terms().values()):
            raise UserError(
                "objective.adversarial.adaptive compares with the gradients of reconstruction and perceptual, and "
                f"neither is on at adversarial.start_step ({block.start_step}): give one of them a weight above 0 and "
                "no later start_step, or set adaptive to false"
            )

    def _teacher_features(self, images: Tensor, terms: Iterable[LossTerm]) -> dict[str, TeacherFeatures]:
        """Features by key of all blocks that the terms read, with one forward pass for each teacher."""
        features: dict[str, TeacherFeatures] = {}
        for teacher, blocks in _teacher_blocks(terms).items():
            keys = [teacher_key(teacher, block) for block in blocks]
            features.update(zip(keys, self.teachers[teacher].features(images, blocks), strict=True))
        return features

    def _terms(self) -> Mapping[str, LossTerm]:
        return cast(Mapping[str, LossTerm], self.terms)


def _teacher_blocks(terms: Iterable[LossTerm]) -> dict[str, list[int | None]]:
    """Blocks that the terms read, by teacher."""
    blocks: dict[str, list[int | None]] = {}
    for read in sorted(set().union(*(term.reads for term in terms))):
        kind, teacher, *block = read.split(":")
        if kind == "teacher":
            blocks.setdefault(teacher, []).append(int(block[0]) if block else None)
    return blocks
