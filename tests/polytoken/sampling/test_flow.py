"""The flow sampler: accuracy on a known Gaussian, time grid, guidance, number of evaluations, invalid settings."""

import pytest
import torch
from torch import Tensor

from polytoken.errors import UserError
from polytoken.sampling import CategoricalSampler, FlowSampler, Guidance
from polytoken.specs import LatentSpec

NULL = 9
MEAN = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
MIXING = torch.tensor([[1.0, 0.0, 0.0], [0.6, 0.5, 0.0], [-0.3, 0.2, 0.8]], dtype=torch.float64)
COVARIANCE = MIXING @ MIXING.T


def velocity_to_gaussian(states: Tensor, times: Tensor, labels: Tensor) -> Tensor:
    """E[x₁ − x₀ | x_t] for x₁ ~ N(MEAN, COVARIANCE) and x₀ ~ N(0, 1), over the channels of (B, 3, 1, 1)."""
    t, identity = times[0].double(), torch.eye(3, dtype=torch.float64)
    covariance = t**2 * COVARIANCE + (1 - t) ** 2 * identity  # of x_t
    slope = (t * COVARIANCE - (1 - t) * identity) @ covariance.inverse()
    centred = states.double().flatten(1) - t * MEAN
    return (MEAN + centred @ slope.T).view(states.shape)


@pytest.mark.parametrize(
    "sampler",
    [
        FlowSampler(steps=600),
        FlowSampler(steps=600, shift=0.5),
        FlowSampler(method="heun", steps=30),
        FlowSampler(method="heun", steps=30, shift=2.0),
    ],
    ids=["euler", "euler_shifted", "heun", "heun_shifted"],
)
def test_a_gaussian_is_reached(sampler: FlowSampler) -> None:
    """The flow to a Gaussian is affine, so the images of 0 and of the unit vectors give mean and covariance."""
    noise = torch.cat([torch.zeros(1, 3), torch.eye(3)]).view(4, 3, 1, 1)
    reached = sampler.integrate(velocity_to_gaussian, noise, torch.zeros(4, dtype=torch.int64), NULL)
    assert reached.dtype == torch.float32
    mean = reached[0].flatten().double()
    matrix = (reached[1:].flatten(1).double() - mean).T
    torch.testing.assert_close(mean, MEAN, atol=1e-2, rtol=0)
    torch.testing.assert_close(matrix @ matrix.T, COVARIANCE, atol=1e-2, rtol=0)


def test_time_grids_of_the_released_code() -> None:
    even = FlowSampler(steps=250).times
    assert even[:3] == [0, 0.004, 0.008] and even[-2:] == [0.996, 1] and len(even) == 251
    shifted = FlowSampler(steps=249, shift=0.3).times
    assert shifted[:4] == pytest.approx([0, 0.00120822, 0.00242326, 0.0036452], rel=1e-5)
    assert shifted[-2:] == pytest.approx([0.9867374, 1], rel=1e-6) and shifted[125] == pytest.approx(0.2321981)
    assert FlowSampler(steps=2, shift=0.3).times[1] == pytest.approx(0.2307692)


class Recorder:
    """A velocity that depends on the label alone, and records times and labels of every evaluation."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.labels: list[list[int]] = []

    def __call__(self, states: Tensor, times: Tensor, labels: Tensor) -> Tensor:
        assert times.dtype == torch.float32 and len(times) == len(states) == len(labels)
        half = states[: len(states) // 2]
        assert len(labels) == 2 or torch.equal(half, states[len(half) :]), "both halves see the same state"
        self.times.append(float(times[0]))
        self.labels.append(labels.tolist())
        return labels.view(-1, 1, 1, 1) * torch.ones_like(states)


def run(sampler: FlowSampler) -> tuple[Tensor, Recorder]:
    recorder = Recorder()
    return sampler.integrate(recorder, torch.zeros(2, 4, 1, 1), torch.tensor([1, 2]), NULL), recorder


def test_evaluations_of_a_step() -> None:
    reached, recorder = run(FlowSampler(steps=4))
    assert recorder.times == [0, 0.25, 0.5, 0.75] and recorder.labels == [[1, 2]] * 4
    assert torch.allclose(reached, torch.tensor([1.0, 2.0]).view(2, 1, 1, 1).expand(2, 4, 1, 1))
    _, recorder = run(FlowSampler(method="heun", steps=2))
    assert recorder.times == [0, 0.5, 0.5, 1]


def test_guidance_doubles_the_rows_of_guided_steps_alone() -> None:
    """LightningDiT's grid: 73 of 249 steps begin before t = 0.11, and 81 before 0.125."""
    reached, recorder = run(FlowSampler(steps=4, guidance=3.0))
    assert recorder.labels == [[1, 2, NULL, NULL]] * 4
    guided = NULL + 3 * (torch.tensor([1.0, 2.0]) - NULL)
    assert torch.allclose(reached, guided.view(2, 1, 1, 1).expand(2, 4, 1, 1))
    for start, unguided in ((0.11, 73), (0.125, 81)):
        interval = {"guidance": 10.0, "guidance_schedule": "interval", "interval": (start, 1.0)}
        _, recorder = run(FlowSampler(steps=249, shift=0.3, **interval))
        assert [len(labels) for labels in recorder.labels] == [2] * unguided + [4] * (249 - unguided)
    _, recorder = run(
        FlowSampler(method="heun", steps=2, guidance=3.0, guidance_schedule="interval", interval=(0.5, 1))
    )
    assert [len(labels) for labels in recorder.labels] == [2, 2, 4, 4], "one scale for both evaluations of a step"


def test_guided_channels() -> None:
    reached, _ = run(FlowSampler(steps=4, guidance=3.0, guided_channels=3))
    guided = NULL + 3 * (torch.tensor([1.0, 2.0]) - NULL)
    assert torch.allclose(reached[:, :3], guided.view(2, 1, 1, 1).expand(2, 3, 1, 1))
    assert torch.allclose(reached[:, 3].flatten(), torch.tensor([1.0, 2.0]))


def test_guided_channels_beyond_the_latents_are_rejected() -> None:
    spec = LatentSpec(4, (2, 2), (0.0,) * 4, (1.0,) * 4)
    FlowSampler(guided_channels=4).check(spec)
    with pytest.raises(UserError, match=r"guided_channels is 5, and the generator's latents have 4 channels"):
        FlowSampler(guided_channels=5).check(spec)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"guidance": [1.5, 2.0]}, "latents have no sub-codes, so a flow takes one value"),
        ({"method": "rk45"}, "method is 'rk45'; it must be euler or heun"),
        ({"steps": 0}, "steps is 0; it must be from 1 to 100,000"),
        ({"shift": 0.0}, "shift is 0.0; it must be above 0"),
        ({"shift": float("nan")}, "shift is nan; it must be above 0"),
        ({"guided_channels": 0}, "guided_channels is 0; it must be at least 1"),
        ({"guidance": -1.0}, "guidance is -1.0; it must be from 0 to"),
    ],
)
def test_invalid_settings(settings: dict, says: str) -> None:
    with pytest.raises(UserError, match=says):
        FlowSampler(**settings)


def test_shared_settings_become_those_of_another_family() -> None:
    shared = {"guidance": 2.0, "guidance_schedule": "interval", "interval": (0.1, 0.9)}
    assert CategoricalSampler(**shared).of(FlowSampler) == FlowSampler(**shared)
    assert FlowSampler(**shared).of(CategoricalSampler) == CategoricalSampler(**shared)
    assert Guidance(**shared).of(FlowSampler) == FlowSampler(**shared)
    own = FlowSampler(steps=7, snap=True)
    assert own.of(FlowSampler) == own
    with pytest.raises(UserError, match="sampler.top_k is no rule of FlowSampler.*: leave it out"):
        CategoricalSampler(top_k=5).of(FlowSampler)
    with pytest.raises(UserError, match="sampler.steps is no rule of CategoricalSampler"):
        own.of(CategoricalSampler)
    with pytest.raises(UserError, match="a flow takes one value"):
        CategoricalSampler(guidance=[1.0, 2.0]).of(FlowSampler)
