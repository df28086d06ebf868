import pytest
import torch

from polytoken.generators import SubTokenNoise

SIZES = (5, 300, 7)


def codes(batch: int = 200, positions: int = 64) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.stack([torch.randint(size, (batch, positions)) for size in SIZES], dim=1)


@pytest.mark.parametrize("per", ["sub_code", "patch"])
@pytest.mark.parametrize("probability", [0.0, 0.1, 0.5, 1.0])
def test_rate(per: str, probability: float) -> None:
    clean = codes()
    noisy = SubTokenNoise(probability, per, "both")(clean, SIZES, step=0)
    assert noisy.rate.item() == pytest.approx(probability, abs=0.01)
    changed = (noisy.trunk != clean).float().mean((0, 2))
    for share, size in zip(changed, SIZES, strict=True):
        assert share.item() == pytest.approx(probability * (1 - 1 / size), abs=0.015)  # a draw may hit the same code


def test_per_patch_draws_a_fixed_number_of_each() -> None:
    big = (10**9,) * 4
    clean = torch.zeros(100, 4, 64, dtype=torch.int64)
    noisy = SubTokenNoise(0.5, "patch")(clean, big, step=0).trunk
    assert ((noisy != 0).sum(1) == 2).all()
    counts = (SubTokenNoise(0.3, "patch")(clean, big, step=0).trunk != 0).sum(1)  # 1.2 of 4
    assert set(counts.unique().tolist()) == {1, 2}
    single = (SubTokenNoise(0.5, "sub_code")(clean, big, step=0).trunk != 0).sum(1)
    assert set(single.unique().tolist()) == {0, 1, 2, 3, 4}


def test_draws_are_uniform_over_their_own_codebook() -> None:
    noisy = SubTokenNoise(1.0)(codes(), SIZES, step=0).trunk
    for i, size in enumerate(SIZES):
        counts = torch.bincount(noisy[:, i].flatten(), minlength=size).double()
        assert len(counts) == size
        expected = counts.sum() / size
        chi_squared = ((counts - expected).square() / expected).sum().item()
        assert chi_squared < size - 1 + 4.5 * (2 * (size - 1)) ** 0.5


def test_where_selects_the_noisy_input() -> None:
    clean = codes(4)
    kept = clean.clone()
    trunk = SubTokenNoise(1.0, where="trunk")(clean, SIZES, 0)
    head = SubTokenNoise(1.0, where="head")(clean, SIZES, 0)
    both = SubTokenNoise(1.0, where="both")(clean, SIZES, 0)
    assert not torch.equal(trunk.trunk, clean)
    assert torch.equal(trunk.head, clean)
    assert torch.equal(head.trunk, clean)
    assert not torch.equal(head.head, clean)
    assert torch.equal(both.trunk, both.head)
    assert torch.equal(clean, kept)


def test_schedule() -> None:
    noise = SubTokenNoise(0.2, start_step=10, ramp_steps=20)
    assert [noise.probability_at(step) for step in (0, 9, 10, 20, 30, 99)] == [0, 0, 0, 0.1, 0.2, 0.2]
    assert noise(codes(4), SIZES, step=5).rate == 0
    assert SubTokenNoise(0.2).probability_at(0) == 0.2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"probability": 1.5}, "noise.probability is 1.5"),
        ({"per": "image"}, "choose sub_code or patch"),
        ({"where": "nowhere"}, "choose trunk, head or both"),
        ({"ramp_steps": -1}, "must not be negative"),
    ],
)
def test_invalid_arguments_are_rejected(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SubTokenNoise(**arguments)
