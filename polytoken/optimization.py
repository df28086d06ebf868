"""Optimizer, learning-rate schedule and gradient norm."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from polytoken.errors import UserError
from polytoken.parallelize import whole
from polytoken.ranges import above, at_least, below_one, within


@dataclass
class OptimizerConfig:
    """Adam with a learning rate that depends on the step alone, so that resuming needs no scheduler state.

    Args:
        learning_rate: peak rate, for the global batch that the recipe names.
        betas: decay rates of Adam's moments.
        weight_decay: 0 is Adam; above 0, AdamW.
        decay: what ``weight_decay`` applies to: ``matrices``, tensors of two or more dimensions, as in LlamaGen; or
            ``all``, biases and norms too, as in the released code of iFSQ.
        schedule: constant, or a cosine from the peak to ``final_fraction`` of it at the trainer's ``max_steps``.
        warmup_steps: updates of linear warm-up before either.
        initial_fraction: start of the warm-up, as a fraction of the peak; 0.1 in the released Ideal.
        final_fraction: end of the cosine, as a fraction of the peak.
        start_step: first step of the schedule, for a network that others train without until then, such as a late
            discriminator; steps before it have the rate of its first one. None is the first step of the run.
    """

    learning_rate: float = 2e-4
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    decay: Literal["matrices", "all"] = "matrices"
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: int = 0
    initial_fraction: float = 0.0
    final_fraction: float = 0.0
    start_step: int | None = None  # null: runs older than this setting resume

    def __post_init__(self) -> None:
        above(0, self, learning_rate=self.learning_rate)
        below_one(self, betas=self.betas)
        at_least(0, self, weight_decay=self.weight_decay, warmup_steps=self.warmup_steps, start_step=self.start_step)
        within(0, 1, self, initial_fraction=self.initial_fraction, final_fraction=self.final_fraction)

    def build(
        self,
        parameters: Iterable[nn.Parameter],
        scaled: Iterable[nn.Parameter] = (),
        scale: float = 1.0,
        network: str = "",
    ) -> torch.optim.Optimizer:
        """AdamW (plain Adam at weight_decay 0) over the trainable parameters, in one kernel for many tensors (fused).

        A run that resumes from a checkpoint of another kind of AdamW continues with that kind.

        Args:
            parameters: parameters at the configured learning rate.
            scaled: parameters at ``scale`` times that rate; disjoint from ``parameters``.
            scale: factor of the learning rate of ``scaled``.
            network: prefix of the names of the parameter groups, under which callbacks log their learning rates.
        """
        prefix = f"{network}/" if network else ""
        groups = [*self._groups(parameters, prefix, 1.0), *self._groups(scaled, f"{prefix}carried_", scale)]
        adam = torch.optim.AdamW(groups, self.learning_rate, self.betas, weight_decay=self.weight_decay, fused=True)
        # A fused step can unscale fp16 gradients itself, so Lightning refuses to clip them, in bf16-mixed too. Without
        # this mark of torch's, a scaler unscales them before they are clipped.
        adam._step_supports_amp_scaling = False
        return adam

    def _groups(self, parameters: Iterable[nn.Parameter], prefix: str, scale: float) -> list[dict[str, Any]]:
        trainable = [parameter for parameter in parameters if parameter.requires_grad]
        if self.weight_decay == 0 or self.decay == "all":
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
        """Learning rate of update ``step`` (from 0) in a run of ``max_steps``; a cosine needs them."""
        if self.schedule == "cosine" and max_steps <= 0:
            raise UserError("a cosine schedule ends at trainer.max_steps: set it, or optimizer.schedule to constant")
        start = self.start_step or 0
        step = max(0, step - start)
        if step < self.warmup_steps:
            warm = (step + 1) / self.warmup_steps
            return self.learning_rate * (self.initial_fraction + (1 - self.initial_fraction) * warm)
        if self.schedule == "constant":
            return self.learning_rate
        progress = min(1.0, (step - self.warmup_steps) / max(1, max_steps - start - self.warmup_steps))
        cosine = 0.5 * (1 + math.cos(math.pi * progress))
        return self.learning_rate * (self.final_fraction + (1 - self.final_fraction) * cosine)

    def set_learning_rate(self, optimizer: torch.optim.Optimizer, step: int, max_steps: int) -> None:
        """Set the learning rates of update ``step`` (from 0) in a run of ``max_steps``."""
        for group in optimizer.param_groups:
            group["lr"] = self.learning_rate_at(step, max_steps) * group.get("scale", 1.0)


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """ℓ2 norm of all gradients together, a float32 scalar on the device of the parameters; 0 without gradients.

    Every rank must call it for sharded parameters.
    """
    parameters = list(parameters)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = whole(torch.nn.utils.get_total_norm(gradients))
    return norm.to(parameters[0].device)  # without gradients torch returns a 0 on the CPU
