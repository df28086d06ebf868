import pytest
import torch

from polytoken.errors import UserError
from polytoken.sampling import CategoricalSampler, FlowSampler
from polytoken.sampling.guidance import Guidance, guide
from polytoken.specs import TokenSpec


def test_guide() -> None:
    logits = torch.tensor([[0.1, 2.0], [0.3, 4.0]])
    torch.testing.assert_close(guide(logits, torch.tensor(2.0)), 2 * logits[:1] - logits[1:])
    assert torch.equal(guide(logits, torch.tensor(1.0)), logits[:1])  # exactly: 0.3 + (0.1 - 0.3) is not 0.1
    assert torch.equal(guide(logits, torch.tensor(0.0)), logits[1:])


def test_scale_is_a_function_of_progress() -> None:
    shares = (0.0, 0.25, 0.5, 0.75, 1.0)
    constant = Guidance(guidance=[3.0, 1.0])
    assert [constant.scale(0.7, i) for i in (0, 1)] == [3.0, 1.0]
    linear = Guidance(guidance=3.0, guidance_schedule="linear")
    assert [linear.scale(share) for share in shares] == [1.0, 1.5, 2.0, 2.5, 3.0]
    interval = Guidance(guidance=3.0, guidance_schedule="interval", interval=(0.25, 0.75))
    assert [interval.scale(share) for share in shares] == [1.0, 3.0, 3.0, 1.0, 1.0]


def test_scales_of_steps() -> None:
    linear = Guidance(guidance=[3.0, 1.0], guidance_schedule="linear")
    assert linear.scales(5, 2) == [[1.0, 1.0], [1.5, 1.0], [2.0, 1.0], [2.5, 1.0], [3.0, 1.0]]
    assert linear.scales(1, 2) == [[3.0, 1.0]]  # the only step is the last one
    interval = Guidance(guidance=3.0, guidance_schedule="interval", interval=(0.2, 0.6))
    assert interval.scales(5) == [[1.0], [3.0], [3.0], [1.0], [1.0]]


def test_guided_steps() -> None:
    assert Guidance(guidance=3.0, guidance_schedule="interval", interval=(0.2, 0.6)).guided_steps(5) == 3
    assert Guidance().guided_steps(5, 2) == 0
    assert Guidance(guidance=[3.0, 1.0]).guided_steps(5, 2) == 5


@pytest.mark.parametrize(("start", "end"), [(0.0, 0.5), (0.1, 0.9), (0.3, 1.0), (0.7, 0.9)])
def test_an_interval_covers_its_share_of_the_steps(start: float, end: float) -> None:
    rules = Guidance(guidance=2.0, guidance_schedule="interval", interval=(start, end))
    guided = [step for step, row in enumerate(rules.scales(100)) if row[0] != 1]
    assert guided == list(range(round(start * 100), round(end * 100)))


@pytest.mark.parametrize("schedule", ["constant", "linear"])
def test_an_interval_is_of_its_schedule_alone(schedule) -> None:
    with pytest.raises(UserError, match=rf"schedule is {schedule}, which has none: set guidance_schedule to interval"):
        FlowSampler(guidance=2.0, guidance_schedule=schedule, interval=(0.1, 1.0))
    FlowSampler(guidance=2.0, guidance_schedule=schedule, interval=(0, 1))


@pytest.mark.parametrize("scale", [-1.0, float("nan"), float("inf"), 1e38, [1.0, 1e38]])
def test_scales_that_overflow_are_rejected(scale: float | list[float]) -> None:
    with pytest.raises(UserError, match="sampler: guidance (is|holds) .*; it must be from 0 to 1,000"):
        Guidance(guidance=scale)


def test_several_scales_may_be_a_tuple() -> None:
    spec = TokenSpec((4, 4), ((2, 2),))
    rules = CategoricalSampler(guidance=(3.0, 1.0), temperature=(1.0, 0.5))
    rules.check(spec)
    assert rules.scales(1, 2) == [[3.0, 1.0]]
    with pytest.raises(UserError, match=r"sampler\.guidance has 3 values and the generator writes 2 sub-codes"):
        CategoricalSampler(guidance=(1.0, 1.0, 1.0)).check(spec)
    with pytest.raises(UserError, match=r"latents have no sub-codes, so a flow takes one value"):
        FlowSampler(guidance=(1.0, 2.0))


def test_other_rules_that_cannot_be_computed_are_rejected() -> None:
    for temperature in (1e-300, 0.0, float("nan")):
        with pytest.raises(UserError, match="sampler: temperature is .*; it must be finite, and at least 0.000001"):
            CategoricalSampler(temperature=temperature)
    for steps in (0, -1, 10**9):
        with pytest.raises(UserError, match=f"sampler: steps is {steps}; it must be from 1 to 100,000"):
            FlowSampler(steps=steps)
