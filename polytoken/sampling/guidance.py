"""Classifier-free guidance: a scale for each step and sub-code (Ho and Salimans, arXiv 2207.12598)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal, TypeVar, get_args

import torch
from torch import Tensor

from polytoken.errors import SettingError, UserError
from polytoken.ranges import one_of, within
from polytoken.specs import LatentSpec, TokenSpec

Schedule = Literal["constant", "linear", "interval"]
Number = TypeVar("Number", int, float)
LARGEST = 1000  # scale; far larger ones overflow
Kind = TypeVar("Kind", bound="Guidance")


@dataclass(frozen=True)
class Guidance:
    """Guidance scale as a function of progress; samplers of all generator families inherit these settings.

    Args:
        guidance: scale s of ℓ_u + s · (ℓ_c - ℓ_u), one value or a list with one a sub-code; 1 is plain conditional
            sampling, 0 unconditional.
        guidance_schedule: ``constant``; ``linear`` in progress, from 1 at the first step to ``guidance`` at the end;
            ``interval``, which is ``guidance`` inside ``interval`` and 1 outside.
        interval: [from, to) of the progress, for the schedule of that name alone. Progress is the share of the steps,
            or the time t of a flow.

    Raises:
        UserError: for a value out of its range, naming it, or an interval with another schedule.
    """

    guidance: float | list[float] = 1.0
    guidance_schedule: Schedule = "constant"
    interval: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        within(0, LARGEST, "sampler", guidance=self.guidance)
        one_of("sampler", get_args(Schedule), guidance_schedule=self.guidance_schedule)
        if not 0 <= self.interval[0] < self.interval[1] <= 1:
            message = f"sampler: interval is {list(self.interval)}; it must be [from, to) within [0, 1]"
            raise SettingError("interval", self.interval, message)
        if self.guidance_schedule != "interval" and tuple(self.interval) != (0.0, 1.0):
            raise UserError(
                f"sampler.interval is {list(self.interval)}, and sampler.guidance_schedule is "
                f"{self.guidance_schedule}, which has none: set guidance_schedule to interval, or leave interval out"
            )

    def check(self, spec: TokenSpec | LatentSpec) -> None:  # noqa: B027
        """Raise UserError if the rules do not fit what a generator writes."""

    def of(self, kind: type[Kind]) -> Kind:
        """Return the same settings as the sampler of a family.

        Raises:
            UserError: if a rule that this family does not have differs from its default.
        """
        names = {field.name for field in fields(kind)}
        given = {field.name: value for field in fields(self) if (value := getattr(self, field.name)) != field.default}
        for name in given:
            if name not in names:
                raise UserError(
                    f"sampler.{name} is no rule of {kind.__name__}, by which this generator samples: leave it out"
                )
        return kind(**given)

    def scale(self, progress: float, sub_code: int = 0) -> float:
        """Return the scale of a sub-code at a progress in [0, 1]."""
        wanted = value_of(self.guidance, sub_code)
        if self.guidance_schedule == "linear":
            return 1 + (wanted - 1) * progress
        if self.guidance_schedule == "interval":
            return wanted if self.interval[0] <= progress < self.interval[1] else 1.0
        return wanted

    def scales(self, num_steps: int, num_sub_codes: int = 1) -> list[list[float]]:
        """Return the scale of each step and sub-code.

        A linear schedule reaches its end at the last step; an interval holds the steps that begin inside it.
        """
        last = num_steps if self.guidance_schedule == "interval" else num_steps - 1
        shares = [step / last for step in range(num_steps)] if last else [1.0]
        return [[self.scale(share, i) for i in range(num_sub_codes)] for share in shares]

    def guided_steps(self, num_steps: int, num_sub_codes: int = 1) -> int:
        """Return the number of steps after which no sub-code is guided any more; 0 if none ever is."""
        guided = [step for step, row in enumerate(self.scales(num_steps, num_sub_codes)) if any(s != 1 for s in row)]
        return guided[-1] + 1 if guided else 0


def guide(logits: Tensor, scale: Tensor) -> Tensor:
    """Combine logits (2B, …), the conditional half first, to guided ones (B, …) in float32; exact at a scale of 1."""
    conditional, unconditional = logits.float().unflatten(0, (2, -1)).unbind()
    return torch.where(scale == 1, conditional, unconditional + scale * (conditional - unconditional))


def value_of(value: Number | Sequence[Number], sub_code: int) -> Number:
    """Return a setting's value for a sub-code."""
    return value[sub_code] if isinstance(value, Sequence) else value
