"""From logits to codes: guidance, temperature, top-k, top-p, and noise that belongs to the row (facts B6)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor

from polytoken.errors import UserError

Number = TypeVar("Number", int, float)

_MASK = 2**64 - 1


@dataclass(frozen=True)
class Sampler:
    """Rules of sampling, each one value for all sub-codes or a list with one a sub-code.

    Logits are guided, divided by the temperature, cut to the top k, cut to the top p, in this order.

    Args:
        guidance: scale s of ℓ_u + s · (ℓ_c - ℓ_u); 1 is plain conditional sampling, 0 unconditional.
        guidance_schedule: ``constant``; ``linear`` from 1 at the first position to ``guidance`` at the last;
            ``interval``, which is ``guidance`` inside ``interval`` and 1 outside.
        interval: [from, to) as shares of the positions, for the schedule of that name.
        temperature: positive.
        top_k: keep the k likeliest codes; None keeps all.
        top_p: keep the likeliest codes until their probability reaches p, in (0, 1]; at least one.

    Raises:
        ValueError: for a value out of its range, naming it.
    """

    guidance: float | list[float] = 1.0
    guidance_schedule: Literal["constant", "linear", "interval"] = "constant"
    interval: tuple[float, float] = (0.0, 1.0)
    temperature: float | list[float] = 1.0
    top_k: int | list[int] | None = None
    top_p: float | list[float] = 1.0

    def __post_init__(self) -> None:
        _check("guidance", self.guidance, lambda value: 0 <= value < float("inf"), "must not be negative")
        _check("temperature", self.temperature, lambda value: 0 < value < float("inf"), "must be positive")
        _check("top_p", self.top_p, lambda value: 0 < value <= 1, "must lie in (0, 1]")
        if self.top_k is not None:
            _check("top_k", self.top_k, lambda value: value >= 1, "must be at least 1 (null keeps all codes)")
        if self.guidance_schedule not in ("constant", "linear", "interval"):
            raise UserError(
                f"sampler.guidance_schedule is {self.guidance_schedule!r}: choose constant, linear or interval"
            )
        if not 0 <= self.interval[0] < self.interval[1] <= 1:
            raise UserError(f"sampler.interval is {list(self.interval)}: it must be [from, to) within [0, 1]")

    def check(self, num_sub_codes: int) -> None:
        """ValueError if a list has not one value a sub-code."""
        for name in ("guidance", "temperature", "top_k", "top_p"):
            value = getattr(self, name)
            if isinstance(value, list) and len(value) != num_sub_codes:
                raise UserError(
                    f"sampler.{name} has {len(value)} values and the generator writes {num_sub_codes} sub-codes: give "
                    "one value, or one a sub-code"
                )

    def scale(self, sub_code: int, position: int, num_positions: int) -> float:
        """Guidance scale of a sub-code at a position."""
        wanted = _of(self.guidance, sub_code)
        if self.guidance_schedule == "linear":
            return 1 + (wanted - 1) * position / max(1, num_positions - 1)
        if self.guidance_schedule == "interval":
            inside = self.interval[0] * num_positions <= position < self.interval[1] * num_positions
            return wanted if inside else 1.0
        return wanted

    def guided_positions(self, num_sub_codes: int, num_positions: int) -> int:
        """Positions after which no sub-code is guided any more; 0 if none ever is."""
        for position in reversed(range(num_positions)):
            if any(self.scale(i, position, num_positions) != 1 for i in range(num_sub_codes)):
                return position + 1
        return 0

    def choose(self, logits: Tensor, sub_code: int, gumbel: Tensor) -> Tensor:
        """Guided logits (B, K) and Gumbel noise (B, K) to codes (B,), distributed as the rules say."""
        logits = logits.float() / _of(self.temperature, sub_code)
        if self.top_k is not None:
            logits = keep_top_k(logits, _of(self.top_k, sub_code))
        logits = keep_top_p(logits, _of(self.top_p, sub_code))
        return (logits + gumbel).argmax(dim=1)


def guide(logits: Tensor, scale: float) -> Tensor:
    """Logits (2B, K), the conditional half first, to guided ones (B, K)."""
    conditional, unconditional = logits.float().chunk(2)
    return conditional if scale == 1 else unconditional + scale * (conditional - unconditional)


def keep_top_k(logits: Tensor, count: int) -> Tensor:
    """Set all logits (B, K) below the k-th largest to minus infinity."""
    if count >= logits.shape[1]:
        return logits
    threshold = logits.topk(count, dim=1).values[:, -1:]
    return logits.masked_fill(logits < threshold, float("-inf"))


def keep_top_p(logits: Tensor, share: float) -> Tensor:
    """Set to minus infinity all logits (B, K) but the likeliest, up to the first that brings their sum to p."""
    if share == 1:
        return logits
    ordered, order = logits.sort(dim=1, descending=True, stable=True)
    probabilities = ordered.softmax(dim=1)
    before = probabilities.cumsum(dim=1) - probabilities
    dropped = before >= share
    dropped[:, 0] = False
    return logits.masked_fill(torch.zeros_like(dropped).scatter(1, order, dropped), float("-inf"))


class RowNoise:
    """Gumbel noise that is a function of (seed, row's index, position, sub-code, code) and of nothing else.

    A row's samples so depend neither on its batch nor on the device. Adding Gumbel noise and taking the largest draws
    from the softmax; unlike a cut through cumulated probabilities it is not upset by the last digits of the logits,
    which do change with the batch size.

    Args:
        seed: of the whole run.
        first_index: index of the batch's first row.
        batch: rows.
        device: where the noise is wanted.
    """

    def __init__(self, seed: int, first_index: int, batch: int, device: torch.device) -> None:
        self.keys = [_mix(_mix(seed) + first_index + row) for row in range(batch)]
        self.device = device

    def gumbel(self, position: int, sub_code: int, num_codes: int) -> Tensor:
        """Noise (B, K) in float64."""
        streams = [_signed(_mix(key ^ _mix(position << 16 | sub_code))) for key in self.keys]
        counters = torch.arange(1, num_codes + 1, device=self.device) * _GOLDEN
        bits = _mix_tensor(torch.tensor(streams, device=self.device).unsqueeze(1) + counters)
        uniform = (_shift(bits, 11).double() + 0.5) * 2.0**-53
        return -(-uniform.log()).log()


# splitmix64 (Steele, Lea and Flood 2014), in integers of 64 bits that overflow silently


def _signed(value: int) -> int:
    value &= _MASK
    return value - 2**64 if value >= 2**63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def _mix(value: int) -> int:
    value = (value + _GOLDEN) & _MASK
    value = (value ^ value >> 30) * _FIRST & _MASK
    value = (value ^ value >> 27) * _SECOND & _MASK
    return value ^ value >> 31


def _mix_tensor(value: Tensor) -> Tensor:
    value = (value ^ _shift(value, 30)) * _signed(_FIRST)
    value = (value ^ _shift(value, 27)) * _signed(_SECOND)
    return value ^ _shift(value, 31)


def _shift(value: Tensor, bits: int) -> Tensor:
    return (value >> bits) & ((1 << (64 - bits)) - 1)  # torch's own shift drags the sign along


def _of(value: Number | list[Number], sub_code: int) -> Number:
    return value[sub_code] if isinstance(value, list) else value


def _check(name: str, value: float | list[float] | list[int], holds: Callable[[float], bool], rule: str) -> None:
    for entry in value if isinstance(value, list) else [value]:
        if not holds(entry):
            raise UserError(f"sampler.{name} is {entry}: it {rule}")
