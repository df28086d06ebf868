"""Categorical sampling: temperature, top-k and top-p on guided logits, and draws with the rows' own noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from polytoken.errors import UserError
from polytoken.ranges import at_least, require
from polytoken.sampling.guidance import Guidance, guide, value_of
from polytoken.sampling.row_noise import Key, RowNoise
from polytoken.specs import LatentSpec, TokenSpec

SMALLEST = 1e-6  # temperature; far smaller ones overflow
COLDEST = f"finite, and at least {SMALLEST:f} (top_k of 1 takes the likeliest code)"


@dataclass(frozen=True)
class CategoricalSampler(Guidance):
    """Sampling rules, each one value for all sub-codes or a list with one a sub-code.

    Logits are guided, divided by the temperature, cut to the top k, cut to the top p, in this order.

    Args:
        guidance: see :class:`~polytoken.sampling.guidance.Guidance`.
        guidance_schedule: see there.
        interval: see there.
        temperature: positive.
        top_k: keep the k likeliest codes; None keeps all.
        top_p: keep the likeliest codes until their probability reaches p, in (0, 1]; at least one.

    Raises:
        UserError: for a value out of its range, naming it.
    """

    temperature: float | list[float] = 1.0
    top_k: int | list[int] | None = None
    top_p: float | list[float] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require("sampler", {"temperature": self.temperature}, lambda value: SMALLEST <= value < math.inf, COLDEST)
        require("sampler", {"top_p": self.top_p}, lambda value: 0 < value <= 1, "above 0, and at most 1")
        at_least(1, "sampler", top_k=self.top_k)

    def check(self, spec: TokenSpec | LatentSpec) -> None:
        """Raise UserError if a list does not have one value a sub-code."""
        assert isinstance(spec, TokenSpec)
        num_sub_codes = spec.num_sub_codes
        for name in ("guidance", "temperature", "top_k", "top_p"):
            value = getattr(self, name)
            if isinstance(value, Sequence) and len(value) != num_sub_codes:
                raise UserError(
                    f"sampler.{name} has {len(value)} values and the generator writes {num_sub_codes} sub-codes: give "
                    "one value, or one a sub-code"
                )

    def choose(self, logits: Tensor, sub_code: int, gumbel: Tensor, temperature: float = 1.0) -> Tensor:
        """Return codes (B, …) for guided logits and Gumbel noise (B, …, K), distributed as the rules say.

        ``temperature`` multiplies that of the rules.
        """
        logits = logits.float() / (value_of(self.temperature, sub_code) * temperature)
        if self.top_k is not None:
            logits = keep_top_k(logits, value_of(self.top_k, sub_code))
        logits = keep_top_p(logits, value_of(self.top_p, sub_code))
        return (logits + gumbel).argmax(dim=-1)


class Draw:
    """Draws of one position's sub-codes: the object through which a head samples.

    Args:
        sampler: the rules.
        noise: of B rows.
        scales: (N, k) float32 guidance scales; see :meth:`Guidance.scales`.
        position: a Python integer, or an int64 tensor () in a compiled step.
        wrong: (k,) bool, set where logits of a sub-code are not finite; shared by the draws of all positions.
    """

    def __init__(
        self,
        sampler: CategoricalSampler,
        noise: RowNoise,
        scales: Tensor,
        position: Key = 0,
        wrong: Tensor | None = None,
    ) -> None:
        self.sampler = sampler
        self.noise = noise
        self.scales = scales
        self.position = position
        self.wrong = scales.new_zeros(scales.shape[1], dtype=torch.bool) if wrong is None else wrong

    def at(self, position: Key) -> Draw:
        """Return the draws of another position."""
        return Draw(self.sampler, self.noise, self.scales, position, self.wrong)

    def check(self) -> None:
        """Raise UserError if logits of any position were not finite; call it after all, since the host waits."""
        if wrong := [index for index, flag in enumerate(self.wrong.tolist()) if flag]:
            raise UserError(
                f"the logits of sub-code {wrong[0]} are not finite, so no code can be drawn from them: lower "
                "sampler.guidance, or train the generator again"
            )

    def guided(self, logits: Tensor, sub_code: int) -> Tensor:
        """Return float32 logits (B, …) for logits (B, …), or (2B, …) whose second half has the null class."""
        if len(logits) == len(self.noise):
            return logits.float()
        scales = self.scales[:, sub_code]
        if isinstance(self.position, Tensor):
            return guide(logits, scales.index_select(0, self.position.view(1)))
        return guide(logits, scales[self.position])

    def gumbel(self, sub_code: int, *keys: int, shape: tuple[int, ...]) -> Tensor:
        """Return Gumbel noise (B, *shape); ``keys`` tell the draws of one sub-code apart."""
        return self.noise.gumbel((self.position, sub_code, *keys), *shape)

    def categorical(self, logits: Tensor, sub_code: int, *keys: int, temperature: float = 1.0) -> Tensor:
        """Return codes (B, …) drawn from logits (B or 2B, …, K) by the rules.

        Args:
            logits: unguided.
            sub_code: which rules apply.
            keys: tell several draws of one sub-code apart.
            temperature: multiplies that of the rules.
        """
        logits = self.guided(logits, sub_code)
        self.wrong[sub_code].logical_or_(~logits.isfinite().all())
        gumbel = self.gumbel(sub_code, *keys, shape=tuple(logits.shape[1:]))
        return self.sampler.choose(logits, sub_code, gumbel, temperature)


def keep_top_k(logits: Tensor, count: int) -> Tensor:
    """Set all logits (…, K) below the k-th largest to minus infinity."""
    if count >= logits.shape[-1]:
        return logits
    threshold = logits.topk(count, dim=-1).values[..., -1:]
    return logits.masked_fill(logits < threshold, float("-inf"))


def keep_top_p(logits: Tensor, share: float) -> Tensor:
    """Set to minus infinity all logits (…, K) but the likeliest, up to the first that brings their sum to p."""
    if share == 1:
        return logits
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    probabilities = ordered.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    dropped = before >= share
    dropped[..., 0] = False
    return logits.masked_fill(torch.zeros_like(dropped).scatter(-1, order, dropped), float("-inf"))
