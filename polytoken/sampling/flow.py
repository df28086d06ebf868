"""Sampling of a flow: the differential equation from noise at t = 0 to data at t = 1, by Euler's or Heun's method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor

from polytoken.errors import UserError
from polytoken.ranges import above, at_least, one_of, within
from polytoken.sampling.guidance import Guidance
from polytoken.specs import LatentSpec, TokenSpec

Method = Literal["euler", "heun"]
MOST_STEPS = 100_000
Velocity = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Velocity (B, C, h, w) of states (B, C, h, w) at times (B,) for labels (B,)."""


@dataclass(frozen=True)
class FlowSampler(Guidance):
    """Rules of integrating dx/dt = v(x, t) from noise at t = 0 to data at t = 1.

    The progress of guidance is t: an interval of [0.11, 1] guides the steps that begin at t ≥ 0.11.

    Args:
        guidance: see :class:`~polytoken.sampling.guidance.Guidance`; one value.
        guidance_schedule: see there.
        interval: see there.
        method: ``euler``, one evaluation of the network a step; ``heun``, two.
        steps: of the time grid; iFSQ takes 250 of Euler's.
        shift: s of t' = s·t / (1 + (s − 1)·t), applied to an even grid; below 1 takes smaller steps near the noise.
        guided_channels: guide only the first channels of the latents, and leave the others to the class; None guides
            all. The released code guides 3, so scales published for it are larger.
        snap: move finished latents to the quantizer's nearest points before they are decoded.

    Raises:
        UserError: for a value out of its range, naming it.
    """

    method: Method = "euler"
    steps: int = 250
    shift: float = 1.0
    guided_channels: int | None = None
    snap: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.guidance, Sequence):
            raise UserError(
                f"sampler.guidance is {self.guidance}: latents have no sub-codes, so a flow takes one value"
            )
        one_of("sampler", get_args(Method), method=self.method)
        within(1, MOST_STEPS, "sampler", steps=self.steps)
        above(0, "sampler", shift=self.shift)
        at_least(1, "sampler", guided_channels=self.guided_channels)

    def check(self, spec: TokenSpec | LatentSpec) -> None:
        """Raise UserError if the latents do not have all guided channels."""
        assert isinstance(spec, LatentSpec)
        if self.guided_channels is not None and self.guided_channels > spec.channels:
            raise UserError(
                f"sampler.guided_channels is {self.guided_channels}, and the generator's latents have {spec.channels} "
                f"channels: give at most {spec.channels}, or null for all"
            )

    @property
    def times(self) -> list[float]:
        """The ``steps`` + 1 times from 0 to 1."""
        even = (index / self.steps for index in range(self.steps + 1))
        return [self.shift * time / (1 + (self.shift - 1) * time) for time in even]

    def integrate(self, velocity: Velocity, noise: Tensor, labels: Tensor, null_label: int) -> Tensor:
        """Return data (B, C, h, w) in float32 for standard normal noise (B, C, h, w) and labels (B,).

        A guided evaluation of the network has 2B rows, those of the null label last; the others have B.
        """
        doubled = torch.cat([labels, torch.full_like(labels, null_label)])
        state = noise.float()
        for time, following in pairwise(self.times):
            state = self.step(partial(self._guided, velocity, doubled, self.scale(time)), state, time, following)
        return state

    def step(self, slope: Callable[[Tensor, float], Tensor], state: Tensor, time: float, following: float) -> Tensor:
        """Return the state at the following time; ``slope`` is the velocity of a state at a time."""
        start = slope(state, time)
        end = state + (following - time) * start
        if self.method == "euler":
            return end
        return state + (following - time) / 2 * (start + slope(end, following))

    def _guided(self, velocity: Velocity, labels: Tensor, scale: float, state: Tensor, time: float) -> Tensor:
        rows = len(state) if scale == 1 else 2 * len(state)
        times = torch.full((rows,), time, dtype=torch.float32, device=state.device)
        if scale == 1:
            return velocity(state, times, labels[:rows]).float()
        conditional, unconditional = velocity(torch.cat([state, state]), times, labels).float().chunk(2)
        guided = unconditional + scale * (conditional - unconditional)
        if self.guided_channels is None:
            return guided
        return torch.cat([guided[:, : self.guided_channels], conditional[:, self.guided_channels :]], dim=1)
