"""Counter-based noise that belongs to a row: splitmix64 (Steele, Lea and Flood 2014) on the device."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor

Key = int | Tensor
"""A Python integer, or an int64 tensor () on the noise's device."""

_MASK = 2**64 - 1


class RowNoise:
    """Noise that is a function of (seed, row's index, integer keys, entry) and of nothing else.

    A row's samples depend neither on its batch nor on the device. Keys may be tensors, so that one compiled decoding
    step serves every position. The first two keys must lie in [0, 2¹⁶).

    Args:
        seed: of the whole run.
        first_index: index of the batch's first row.
        batch: rows B.
        device: of the noise.
    """

    def __init__(self, seed: int, first_index: int, batch: int, device: torch.device) -> None:
        first = _signed(_mix(seed) + first_index + _GOLDEN)
        self.keys = _finalise(torch.arange(batch, device=device) + first)  # (B,)
        # a tensor: by a constant, Inductor writes the products of counters as signed arithmetic of the loop's index,
        # whose overflow is undefined in C++, and GCC lets the loop run on
        self.stride = torch.full((), _GOLDEN, device=device)

    @classmethod
    def at(cls, seed: int, indices: Tensor) -> RowNoise:
        """Return the noise of rows of these indices (B,) int64, in any order."""
        return cls(seed, 0, 0, indices.device).of(_finalise(indices + _signed(_mix(seed) + _GOLDEN)))

    def spread(self, count: int) -> RowNoise:
        """Return the noise of B · count rows: row i · count + j is a function of row i and j."""
        offsets = torch.arange(1, count + 1, device=self.keys.device) * self.stride
        return self.of(_finalise(self.keys.unsqueeze(1) ^ _finalise(offsets)).flatten())

    def of(self, keys: Tensor) -> RowNoise:
        """Return the noise of rows of other keys (B',) int64."""
        noise = copy.copy(self)
        noise.keys = keys
        return noise

    def __len__(self) -> int:
        return len(self.keys)

    def gumbel(self, keys: tuple[Key, ...], *shape: int) -> Tensor:
        """Return standard Gumbel noise (B, *shape) in float64.

        Adding it to logits and taking the largest draws from the softmax. Unlike a cut through cumulated probabilities,
        the draw is robust to the last digits of the logits, which change with the batch size.
        """
        uniform = (_shift(self._bits(keys, shape), 11).double() + 0.5) * 2.0**-53
        return -(-uniform.log()).log()

    def uniform(self, keys: tuple[Key, ...], *shape: int) -> Tensor:
        """Return noise (B, *shape) in float64, uniform on the open interval (0, 1)."""
        return (_shift(self._bits(keys, shape), 12).double() + 0.5) * 2.0**-52

    def normal(self, keys: tuple[Key, ...], *shape: int) -> Tensor:
        """Return standard normal noise (B, *shape) in float64."""
        return torch.special.ndtri(self.uniform(keys, *shape))

    def _bits(self, keys: tuple[Key, ...], shape: tuple[int, ...]) -> Tensor:
        first, second, *rest = (*keys, 0, 0) if len(keys) < 2 else keys
        streams = self.keys
        for key in (first << 16 | second, *rest):
            word = _finalise(key + _GOLDEN) if isinstance(key, Tensor) else _signed(_mix(key))
            streams = _finalise((streams ^ word) + _GOLDEN)
        counters = torch.arange(1, math.prod(shape) + 1, device=streams.device) * self.stride
        return _finalise(streams.unsqueeze(1) + counters).view(len(streams), *shape)


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


def _finalise(value: Tensor) -> Tensor:
    """Apply splitmix64's output function; int64 products overflow silently."""
    value = (value ^ _shift(value, 30)) * _signed(_FIRST)
    value = (value ^ _shift(value, 27)) * _signed(_SECOND)
    return value ^ _shift(value, 31)


def _shift(value: Tensor, bits: int) -> Tensor:
    return (value >> bits) & ((1 << (64 - bits)) - 1)  # torch's shift keeps the sign
