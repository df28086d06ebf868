"""Noisy sub-tokens: random input codes, clean targets (SSQ section 4.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from polytoken.constants import constant
from polytoken.errors import UserError


class NoisyCodes(NamedTuple):
    """Input of a generator.

    Attributes:
        trunk: codes (B, k, N) for the trunk's input.
        head: codes (B, k, N) for the head's input.
        rate: share of the sub-codes that were replaced, a float32 scalar.
    """

    trunk: Tensor
    head: Tensor
    rate: Tensor


class SubTokenNoise:
    """Replace input sub-codes by uniform draws from their own codebooks; targets stay clean.

    Args:
        probability: expected share of replaced sub-codes, once the schedule is over.
        per: ``sub_code`` replaces each one independently; ``patch`` replaces the same number of each patch's k
            sub-codes, chosen at random (probability · k, its fraction by chance).
        where: what reads the noisy codes: the trunk's input, the head's, or both (the same ones).
        start_step: step before which nothing is noisy.
        ramp_steps: steps over which the probability then grows linearly from 0; 0 skips the ramp.
    """

    def __init__(
        self,
        probability: float = 0.1,
        per: Literal["sub_code", "patch"] = "sub_code",
        where: Literal["trunk", "head", "both"] = "trunk",
        start_step: int = 0,
        ramp_steps: int = 0,
    ) -> None:
        if not 0 <= probability <= 1:
            raise UserError(f"noise.probability is {probability}: it must lie in [0, 1]")
        if per not in ("sub_code", "patch"):
            raise UserError(f"noise.per is {per!r}: choose sub_code or patch")
        if where not in ("trunk", "head", "both"):
            raise UserError(f"noise.where is {where!r}: choose trunk, head or both")
        if start_step < 0 or ramp_steps < 0:
            raise UserError(f"noise.start_step {start_step} and noise.ramp_steps {ramp_steps} must not be negative")
        self.probability = probability
        self.per = per
        self.where = where
        self.start_step = start_step
        self.ramp_steps = ramp_steps

    def probability_at(self, step: int) -> float:
        """Return the scheduled probability."""
        if step < self.start_step:
            return 0.0
        if step >= self.start_step + self.ramp_steps:
            return self.probability
        return self.probability * (step - self.start_step) / self.ramp_steps

    def __call__(self, codes: Tensor, codebook_sizes: Sequence[int], step: int) -> NoisyCodes:
        """Return what trunk and head read at a step, for clean codes (B, k, N)."""
        drawn = self._drawn(codes, self.probability_at(step))
        sizes = constant(tuple(codebook_sizes), codes.device, torch.int64).view(1, -1, 1)
        uniform = torch.rand(codes.shape, device=codes.device, dtype=torch.float64)  # float32 would round up to K
        noisy = torch.where(drawn, (uniform * sizes).long(), codes)
        return NoisyCodes(
            trunk=codes if self.where == "head" else noisy,
            head=codes if self.where == "trunk" else noisy,
            rate=drawn.float().mean(),
        )

    def _drawn(self, codes: Tensor, probability: float) -> Tensor:
        chance = torch.rand(codes.shape, device=codes.device)
        if self.per == "sub_code":
            return chance < probability
        batch, num_codes, positions = codes.shape
        wanted = probability * num_codes
        counts = (wanted + torch.rand(batch, 1, positions, device=codes.device)).floor()  # mean: wanted
        ranks = chance.argsort(dim=1).argsort(dim=1)  # a random order of the k sub-codes
        return ranks < counts
