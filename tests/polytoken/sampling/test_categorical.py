import pytest
import torch

from polytoken.sampling.categorical import CategoricalSampler, keep_top_k, keep_top_p
from polytoken.specs import TokenSpec


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
    chosen = lambda **rules: CategoricalSampler(**rules).choose(logits, 0, noise).item()  # noqa: E731
    assert chosen() == 2
    assert chosen(top_k=2) == 1
    assert chosen(temperature=2.0, top_p=0.6) == 1
    assert chosen(temperature=2.0, top_k=2, top_p=0.6) == 0
    assert chosen(top_p=0.6) == 0


def test_rules_per_sub_code() -> None:
    sampler = CategoricalSampler(temperature=[1.0, 1e-3], top_k=[1, 3], top_p=[1.0, 0.5])
    sampler.check(TokenSpec((4, 4), ((1, 1),)))
    logits, noise = torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([[0.0, 0.0, 9.0]])
    assert sampler.choose(logits, 0, noise).item() == 0
    assert sampler.choose(logits, 1, noise).item() == 0
    assert CategoricalSampler(top_k=[1, 3]).choose(logits, 1, noise).item() == 2


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"guidance": -0.1}, "sampler: guidance is -0.1; it must be from 0 to 1,000"),
        ({"guidance": [1.0, float("nan")]}, "sampler: guidance holds nan"),
        (
            {"temperature": 0.0},
            "temperature is 0.0; it must be .* at least 0.000001 .top_k of 1 takes the likeliest",
        ),
        ({"top_p": 0.0}, "sampler: top_p is 0.0; it must be above 0, and at most 1"),
        ({"top_p": [0.5, 1.1]}, "sampler: top_p holds 1.1"),
        ({"top_k": 0}, "sampler: top_k is 0; it must be at least 1"),
        ({"top_k": [1, -1]}, "sampler: top_k holds -1"),
        ({"guidance_schedule": "cosine"}, "it must be constant, linear or interval"),
        ({"interval": (0.5, 0.5)}, r"sampler: interval is \[0.5, 0.5\]"),
    ],
)
def test_invalid_rules_are_rejected(rules: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CategoricalSampler(**rules)
