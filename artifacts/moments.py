"""Mean and deviation of latents over a data set, from sums that add up over batches and shards."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from polytoken.specs import LatentSpec


@dataclass(frozen=True)
class Moments:
    """Sums over all latents of each channel, in float64.

    Args:
        count: Latents a channel.
        sums: Their sum, for each channel.
        squares: The sum of their squares.
    """

    count: int
    sums: tuple[float, ...]
    squares: tuple[float, ...]

    @classmethod
    def of(cls, latents: np.ndarray) -> Moments:
        """Sum up latents (…, C, h, w)."""
        channels = latents.astype(np.float64).reshape(-1, *latents.shape[-3:])
        sums, squares = channels.sum((0, 2, 3)), np.square(channels).sum((0, 2, 3))
        return cls(channels.size // len(sums), tuple(sums.tolist()), tuple(squares.tolist()))

    def __add__(self, other: Moments) -> Moments:
        """Return the moments of both sets of latents together."""
        return Moments(
            self.count + other.count,
            tuple(a + b for a, b in zip(self.sums, other.sums, strict=True)),
            tuple(a + b for a, b in zip(self.squares, other.squares, strict=True)),
        )

    def spec(self, grid: tuple[int, int]) -> LatentSpec:
        """Describe the latents of a grid (h, w) by mean and standard deviation of each channel."""
        mean = np.array(self.sums) / self.count
        variance = np.array(self.squares) / self.count - np.square(mean)
        deviation = np.sqrt(np.maximum(variance, 0))  # rounding may leave a constant channel slightly below zero
        return LatentSpec(len(mean), grid, tuple(mean.tolist()), tuple(deviation.tolist()))
