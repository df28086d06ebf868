import math

import pytest
import torch

from polytoken.sampling.categorical import RowNoise, Sampler, guide, keep_top_k, keep_top_p

CPU = torch.device("cpu")


def test_guidance() -> None:
    logits = torch.tensor([[1.0, 2.0], [0.0, 4.0]])
    assert torch.equal(guide(logits, 2.0), torch.tensor([[2.0, 0.0]]))
    assert torch.equal(guide(logits, 1.0), logits[:1])
    assert torch.equal(guide(logits, 0.0), logits[1:])


def test_schedules() -> None:
    constant = Sampler(guidance=[3.0, 1.0])
    assert [constant.scale(i, 7, 10) for i in (0, 1)] == [3.0, 1.0]
    linear = Sampler(guidance=3.0, guidance_schedule="linear")
    assert [linear.scale(0, position, 5) for position in range(5)] == [1.0, 1.5, 2.0, 2.5, 3.0]
    interval = Sampler(guidance=3.0, guidance_schedule="interval", interval=(0.2, 0.6))
    assert [interval.scale(0, position, 5) for position in range(5)] == [1.0, 3.0, 3.0, 1.0, 1.0]
    assert interval.guided_positions(1, 5) == 3
    assert Sampler().guided_positions(2, 5) == 0
    assert constant.guided_positions(2, 5) == 5


def test_top_k_and_top_p() -> None:
    logits = torch.tensor([[0.5, 0.2, 0.15, 0.1, 0.05]]).log()
    kept = lambda cut: cut.isfinite().tolist()[0]  # noqa: E731
    assert kept(keep_top_k(logits, 2)) == [True, True, False, False, False]
    assert kept(keep_top_k(logits, 9)) == [True] * 5
    assert kept(keep_top_p(logits, 0.6)) == [True, True, False, False, False]
    assert kept(keep_top_p(logits, 1e-9)) == [True, False, False, False, False]
    assert kept(keep_top_p(logits, 1.0)) == [True] * 5
    shuffled = logits[:, [3, 0, 4, 2, 1]]
    assert kept(keep_top_p(shuffled, 0.6)) == [False, True, False, False, True]


def test_order_temperature_then_top_k_then_top_p() -> None:
    """At temperature 2 the odds 16 : 4 : 1 are 4 : 2 : 1; of the top two, 2/3 is the first, which p = 0.6 keeps alone.

    Top-p before top-k (4/7 < 0.6) or before the temperature would keep other sets.
    """
    logits = torch.tensor([[16.0, 4.0, 1.0]]).log()
    noise = torch.tensor([[0.0, 100.0, 200.0]])
    chosen = lambda **rules: Sampler(**rules).choose(logits, 0, noise).item()  # noqa: E731
    assert chosen() == 2
    assert chosen(top_k=2) == 1
    assert chosen(temperature=2.0, top_p=0.6) == 1
    assert chosen(temperature=2.0, top_k=2, top_p=0.6) == 0
    assert chosen(top_p=0.6) == 0


def test_rules_per_sub_code() -> None:
    sampler = Sampler(temperature=[1.0, 1e-3], top_k=[1, 3], top_p=[1.0, 0.5])
    sampler.check(2)
    logits, noise = torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([[0.0, 0.0, 9.0]])
    assert sampler.choose(logits, 0, noise).item() == 0
    assert sampler.choose(logits, 1, noise).item() == 0
    assert Sampler(top_k=[1, 3]).choose(logits, 1, noise).item() == 2


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"guidance": -0.1}, "sampler.guidance is -0.1: it must not be negative"),
        ({"guidance": [1.0, float("nan")]}, "sampler.guidance is nan"),
        ({"temperature": 0.0}, "sampler.temperature is 0.0: it must be positive"),
        ({"top_p": 0.0}, r"sampler.top_p is 0.0: it must lie in \(0, 1\]"),
        ({"top_p": [0.5, 1.1]}, "sampler.top_p is 1.1"),
        ({"top_k": 0}, "sampler.top_k is 0: it must be at least 1"),
        ({"top_k": [1, -1]}, "sampler.top_k is -1"),
        ({"guidance_schedule": "cosine"}, "choose constant, linear or interval"),
        ({"interval": (0.5, 0.5)}, r"sampler.interval is \[0.5, 0.5\]"),
    ],
)
def test_bad_rules(rules: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampler(**rules)


def test_noise_belongs_to_the_row() -> None:
    whole = RowNoise(5, 10, 4, CPU).gumbel(3, 1, 50)
    assert torch.equal(RowNoise(5, 12, 1, CPU).gumbel(3, 1, 50), whole[2:3])
    others = [
        RowNoise(6, 10, 4, CPU).gumbel(3, 1, 50),
        RowNoise(5, 10, 4, CPU).gumbel(4, 1, 50),
        RowNoise(5, 10, 4, CPU).gumbel(3, 0, 50),
    ]
    for other in others:
        assert not torch.isclose(other, whole).any()
    assert len(torch.unique(whole)) == whole.numel()


def test_noise_is_gumbel_and_uncorrelated() -> None:
    noise = RowNoise(0, 0, 8, CPU).gumbel(0, 0, 20_000)
    assert noise.isfinite().all()
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.01)
    assert noise.var().item() == pytest.approx(math.pi**2 / 6, abs=0.03)
    uniform = (-(-noise).exp()).exp()
    assert torch.histc(uniform, 20, 0, 1).div(8000).sub(1).abs().max() < 0.06
    neighbours = RowNoise(1, 0, 8, CPU).gumbel(0, 0, 20_000), RowNoise(0, 0, 8, CPU).gumbel(1, 0, 20_000)
    rows = torch.cat([noise, *neighbours])
    correlation = torch.corrcoef(rows) - torch.eye(24)
    assert correlation.abs().max() < 0.035
    assert torch.corrcoef(torch.stack([noise[:, 1:].flatten(), noise[:, :-1].flatten()]))[0, 1].abs() < 0.01


def test_large_and_negative_seeds() -> None:
    for seed in (2**63, -1, 2**64 - 1):
        assert RowNoise(seed, 2**40, 1, CPU).gumbel(0, 0, 3).isfinite().all()
