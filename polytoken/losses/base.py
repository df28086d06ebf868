"""What a loss term reads and promises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from polytoken.specs import Encoding
from polytoken.teachers.teacher import Teacher, TeacherFeatures
from polytoken.tokenizers import Tokenizer


@dataclass
class TokenizerStep:
    """All that one training step of a tokenizer makes, for the loss terms to read.

    Args:
        images: (B, 3, H, W) in [-1, 1].
        reconstruction: (B, 3, H, W), not clamped.
        encoding: the bottleneck's result.
        last_layer: the decoder's last weight, for the adaptive adversarial weight.
        global_step: optimizer updates made so far, which start and schedule the terms.
        teacher_features: what each teacher that a term of this step reads says of the images, by its name.
    """

    images: Tensor
    reconstruction: Tensor
    encoding: Encoding
    last_layer: nn.Parameter
    global_step: int
    teacher_features: dict[str, TeacherFeatures] = field(default_factory=dict)


class LossTerm(nn.Module, ABC):
    """One named scalar of a tokenizer's objective.

    Args:
        weight: factor in the total.
        start_step: updates before which the term is left out.
    """

    def __init__(self, weight: float = 1.0, start_step: int = 0) -> None:
        super().__init__()
        self.weight = weight
        self.start_step = start_step

    def connect(self, tokenizer: Tokenizer, teachers: dict[str, Teacher]) -> None:  # noqa: B027 - most need nothing
        """Check the term against the tokenizer it will train, and build what has its sizes; called once."""

    def prepare(self, device: torch.device) -> None:  # noqa: B027 - most terms have nothing to load
        """Load what the term leans on (frozen networks); called once before training so that a lack shows early."""

    @abstractmethod
    def forward(self, step: TokenizerStep) -> Tensor:
        """The unweighted scalar, float32."""
