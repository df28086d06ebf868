"""Interface of loss terms."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from polytoken.ranges import at_least
from polytoken.specs import Decoded, Encoding
from polytoken.teachers import Teacher, TeacherFeatures
from polytoken.tokenizers import Tokenizer


@dataclass
class TokenizerStep:
    """Inputs and outputs of one training step of a tokenizer, for the loss terms to read.

    Args:
        images: (B, 3, H, W) in [-1, 1].
        decoded: output of the decoder: the image (B, 3, H, W), not clamped, and features by name.
        encoding: output of the quantizer.
        last_layer: the decoder's last weight, for the adaptive adversarial weight.
        global_step: optimizer updates so far, which start and schedule the terms.
        teacher_features: features of the images by :func:`teacher_key`, for all keys that active terms read.
    """

    images: Tensor
    decoded: Decoded
    encoding: Encoding
    last_layer: nn.Parameter
    global_step: int
    teacher_features: dict[str, TeacherFeatures] = field(default_factory=dict)


def teacher_key(teacher: str, block: int | None = None) -> str:
    """Key of a block in ``TokenizerStep.teacher_features``: ``high``, or ``high:6`` for the sixth block of ``high``."""
    return teacher if block is None else f"{teacher}:{block}"


class LossTerm(nn.Module, ABC):
    """One named scalar of a tokenizer's objective.

    Args:
        weight: factor in the total.
        start_step: updates before which the term is left out.
    """

    is_reconstruction = False
    """Part of L_rec in the adaptive adversarial weight (VQGAN eq. 7)."""

    def __init__(self, weight: float = 1.0, start_step: int = 0) -> None:
        super().__init__()
        at_least(0, self, weight=weight, start_step=start_step)
        self.weight = weight
        self.start_step = start_step

    @property
    def reads(self) -> frozenset[str]:
        """Inputs that not every tokenizer or objective provides.

        ``teacher:<key>`` asks for features that a teacher computes of the images (:func:`teacher_key`), which are
        computed for terms that read them alone; ``features:<name>`` for features in ``TokenizerStep.decoded``.
        """
        return frozenset()

    def active(self, global_step: int) -> bool:
        """Return True if the term takes part in this update."""
        return global_step >= self.start_step

    def connect(self, tokenizer: Tokenizer, teachers: dict[str, Teacher]) -> None:  # noqa: B027 - optional
        """Check the term against the tokenizer, and build parts that need its sizes; called once.

        All teachers that the term reads are in ``teachers``.
        """

    def prepare(self, device: torch.device) -> None:  # noqa: B027 - optional
        """Load frozen networks; called once before training, so that a missing file stops the run early."""

    @abstractmethod
    def forward(self, step: TokenizerStep) -> Tensor:
        """The unweighted scalar, float32."""
