"""Optimizer and learning-rate schedule, as functions of the step alone."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from polytoken.errors import UserError
from polytoken.parallelize import whole


@dataclass
class OptimizerConfig:
    """Adam, and a learning rate that is a function of the step.

    Args:
        learning_rate: peak rate, for the global batch the recipe names.
        betas: Adam's.
        weight_decay: 0 is Adam; above, AdamW on tensors of two or more dimensions.
        schedule: constant, or a cosine from the peak to ``final_fraction`` of it at the trainer's ``max_steps``.
        warmup_steps: updates of linear warm-up before either.
        final_fraction: where the cosine ends, as a fraction of the peak.
    """

    learning_rate: float = 2e-4
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: int = 0
    final_fraction: float = 0.0

    def build(
        self, parameters: Iterable[nn.Parameter], scaled: Iterable[nn.Parameter] = (), scale: float = 1.0
    ) -> torch.optim.Optimizer:
        """An AdamW (plain Adam at weight_decay 0) over the trainable parameters.

        Those in ``scaled``, which ``parameters`` must not hold again, learn at ``scale`` times the rate of the others.
        """
        groups = [*self._groups(parameters, "", 1.0), *self._groups(scaled, "carried_", scale)]
        return torch.optim.AdamW(groups, self.learning_rate, self.betas, weight_decay=self.weight_decay)

    def _groups(self, parameters: Iterable[nn.Parameter], prefix: str, scale: float) -> list[dict[str, Any]]:
        trainable = [parameter for parameter in parameters if parameter.requires_grad]
        if self.weight_decay == 0:
            named = {"all": trainable}
        else:
            named = {
                "decayed": [p for p in trainable if p.ndim >= 2],
                "not_decayed": [p for p in trainable if p.ndim < 2],
            }
        extra: dict[str, Any] = {"not_decayed": {"weight_decay": 0.0}}
        return [
            {"params": group, "name": f"{prefix}{name}", "scale": scale, **extra.get(name, {})}
            for name, group in named.items()
            if group
        ]

    def learning_rate_at(self, step: int, max_steps: int) -> float:
        """Learning rate of update ``step`` (from 0) in a run of ``max_steps``."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return self.learning_rate
        if max_steps <= 0:
            raise UserError("a cosine schedule ends at trainer.max_steps: set it, or optimizer.schedule to constant")
        progress = min(1.0, (step - self.warmup_steps) / max(1, max_steps - self.warmup_steps))
        cosine = 0.5 * (1 + math.cos(math.pi * progress))
        return self.learning_rate * (self.final_fraction + (1 - self.final_fraction) * cosine)

    def apply(self, optimizer: torch.optim.Optimizer, step: int, max_steps: int) -> None:
        """Set the learning rate of update ``step``."""
        for group in optimizer.param_groups:
            group["lr"] = self.learning_rate_at(step, max_steps) * group.get("scale", 1.0)


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """ℓ2 norm of all gradients together, float32 scalar where the parameters are; 0 if there is no gradient.

    Every rank must call it for weights that are in pieces.
    """
    parameters = list(parameters)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = whole(torch.nn.utils.get_total_norm(gradients))
    return norm.to(parameters[0].device)  # that of no gradients is torch's own, on the CPU
