"""Moments of parts add up to those of the whole."""

import numpy as np
import pytest

from artifacts.moments import Moments
from polytoken import records


def test_parts_add_up() -> None:
    latents = np.random.default_rng(0).normal([[[3.0]], [[-40.0]]], [[[0.5]], [[7.0]]], (10, 3, 2, 4, 5))
    latents = latents.astype(np.float32)
    parts = (
        Moments.of(latents[:3]) + Moments.of(latents[3:4, 0]) + Moments.of(latents[3:4, 1:]) + Moments.of(latents[4:])
    )
    spec = parts.spec((4, 5))
    whole = latents.astype(np.float64)
    assert (spec.channels, spec.grid, parts.count) == (2, (4, 5), 10 * 3 * 20)
    np.testing.assert_allclose(spec.mean, whole.mean((0, 1, 3, 4)), rtol=1e-12)
    np.testing.assert_allclose(spec.deviation, whole.std((0, 1, 3, 4)), rtol=1e-10)


def test_sums_are_float64_whatever_the_latents_are() -> None:
    """A sum in float16 would be wrong from the third digit on."""
    latents = np.full((1000, 1, 1, 1), 0.1, np.float16)
    assert Moments.of(latents).sums[0] == pytest.approx(1000 * float(np.float16(0.1)), rel=1e-12)


def test_moments_survive_json(tmp_path) -> None:
    moments = Moments.of(np.random.default_rng(1).normal(size=(3, 2, 2, 2)))
    records.write(tmp_path / "moments.json", moments)
    assert records.read(tmp_path / "moments.json", Moments) == moments
