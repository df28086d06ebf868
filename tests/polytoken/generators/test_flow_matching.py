"""Velocity loss: values, distribution of times, determinism outside of training."""

import pytest
import torch

from polytoken.errors import UserError
from polytoken.generators import FlowMatching
from polytoken.generators.flow_matching import interpolate


def test_direction_of_time() -> None:
    """t = 1 is data and t = 0 noise, and the path's derivative is the target of the loss."""
    data, noise = torch.randn(2, 3, 2, 2), torch.randn(2, 3, 2, 2)
    assert torch.equal(interpolate(data, noise, torch.ones(2)), data)
    assert torch.equal(interpolate(data, noise, torch.zeros(2)), noise)
    early, late = (interpolate(data, noise, torch.full((2,), t)) for t in (0.25, 0.75))
    total, parts = FlowMatching().loss((late - early) / 0.5, data, noise)
    assert float(total) == pytest.approx(0, abs=1e-5) and [*parts] == ["velocity", "cosine"]


def test_loss_equals_a_float64_reference() -> None:
    data, noise, predicted = torch.randn(3, 4, 5, 2, 3).unbind(0)
    total, parts = FlowMatching(cosine_weight=0.5).loss(predicted.bfloat16(), data, noise)
    rounded, target = predicted.bfloat16().double(), data.double() - noise.double()
    squared, cosines = 0.0, 0.0
    for row in range(4):
        for i in range(2):
            for j in range(3):
                found, wanted = rounded[row, :, i, j], target[row, :, i, j]
                squared += float((found - wanted).square().sum())
                cosines += float(found @ wanted / (found.norm() * wanted.norm()))
    assert float(parts["velocity"]) == pytest.approx(squared / (4 * 5 * 6), rel=1e-5)
    assert float(parts["cosine"]) == pytest.approx(1 - cosines / 24, rel=1e-5)
    assert float(total) == pytest.approx(squared / 120 + 0.5 * (1 - cosines / 24), rel=1e-5)
    assert total.dtype == torch.float32
    total, parts = FlowMatching(cosine_weight=0.0).loss(predicted, data, noise)
    assert [*parts] == ["velocity"] and total == parts["velocity"]


def test_the_first_gradient_is_of_ordinary_size() -> None:
    """At a velocity of zero, where training begins, the cosine's gradient is 1 / 0.1 for each position."""
    data, noise = torch.randn(2, 4, 5, 2, 3).unbind(0)
    predicted = torch.zeros(4, 5, 2, 3, requires_grad=True)
    _, parts = FlowMatching().loss(predicted, data, noise)
    assert float(parts["cosine"]) == 1
    (gradient,) = torch.autograd.grad(parts["cosine"], predicted)
    assert torch.allclose(gradient.norm(dim=1), torch.full((4, 2, 3), 10 / 24))


def test_times_of_training() -> None:
    torch.manual_seed(0)
    latents = torch.zeros(20000, 1, 1, 1)
    times, noise = FlowMatching().draw(latents, training=True)
    assert times.dtype == noise.dtype == torch.float32 and noise.shape == latents.shape
    assert float(times.logit().mean()) == pytest.approx(0, abs=0.03)
    assert float(times.logit().std()) == pytest.approx(1, abs=0.03)
    uniform, _ = FlowMatching("uniform").draw(latents, training=True)
    assert float(uniform.mean()) == pytest.approx(0.5, abs=0.01) and float(uniform.std()) == pytest.approx(
        12**-0.5, abs=0.01
    )
    assert float(noise.std()) == pytest.approx(1, abs=0.03)


def test_times_of_validation_are_quantiles() -> None:
    flow, latents = FlowMatching("uniform"), torch.zeros(4, 2, 3, 3)
    times, noise = flow.draw(latents, training=False)
    assert times.tolist() == [0.125, 0.375, 0.625, 0.875]
    torch.manual_seed(7)
    again = flow.draw(latents, training=False)
    assert torch.equal(times, again[0]) and torch.equal(noise, again[1])
    normal, _ = FlowMatching().draw(torch.zeros(1000, 1, 1, 1), training=False)
    assert float(normal.median()) == pytest.approx(0.5, abs=1e-3)
    assert float(normal.logit().std()) == pytest.approx(1, abs=0.01)


def test_extreme_shares_are_finite() -> None:
    assert FlowMatching().quantile(torch.tensor([0.0, 1.0])).tolist() == [0, 1]


def test_invalid_settings() -> None:
    with pytest.raises(UserError, match="flow: times is 'cosine'; it must be logit_normal or uniform"):
        FlowMatching("cosine")
    with pytest.raises(UserError, match="cosine_weight is -1"):
        FlowMatching(cosine_weight=-1)
