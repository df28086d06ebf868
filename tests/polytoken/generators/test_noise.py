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


def test_the_default_takes_the_same_random_numbers_as_ever() -> None:
    clean, sizes = codes(4), torch.tensor(SIZES).view(1, -1, 1)
    torch.manual_seed(3)
    chance, uniform = torch.rand(clean.shape), torch.rand(clean.shape, dtype=torch.float64)
    torch.manual_seed(3)
    assert torch.equal(
        SubTokenNoise(0.3)(clean, SIZES, 0).trunk, torch.where(chance < 0.3, (uniform * sizes).long(), clean)
    )


@pytest.mark.parametrize("per", ["sub_code", "patch"])
@pytest.mark.parametrize(
    ("step", "probability"), [(0, 1.0), (75, 1.0), (175, 0.5), (225, 0.25), (275, 0.0), (999, 0.0)]
)
def test_uniform_probabilities_that_decay(step: int, probability: float, per: str) -> None:
    """The replaced share of a sample is uniform between 0 and p: p/2 on average, with a deviation of p/√12."""
    noise = SubTokenNoise(1.0, per, start_step=0, ramp_steps=75, decay_steps=200, sample_probability="uniform")
    if step == 0:
        assert noise.probability_at(0) == 0
        return
    assert noise.probability_at(step) == probability
    torch.manual_seed(1)
    clean = torch.zeros(5000, 2, 64, dtype=torch.int64)
    shares = (noise(clean, (10**9, 10**9), step).trunk != 0).double().mean((1, 2))
    assert shares.mean().item() == pytest.approx(probability / 2, abs=0.012)
    assert shares.std().item() == pytest.approx(probability / 12**0.5, abs=0.02)
    assert shares.max() <= min(1, probability + 0.2)


def test_replaced_positions_are_marked() -> None:
    big, clean = (10**9, 10**9), torch.zeros(50, 2, 64, dtype=torch.int64)
    noisy = SubTokenNoise(0.3, where="both")(clean, big, 0)
    assert noisy.replaced is not None and torch.equal(noisy.replaced, (noisy.trunk != 0).any(1))
    assert noisy.replaced.float().mean().item() == pytest.approx(1 - 0.7**2, abs=0.03)
    assert SubTokenNoise(0.3, where="head")(clean, big, 0).replaced is None


def test_nearest_codes_are_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(2)
    vectors = [torch.randn(size, width) for size, width in zip(SIZES, (2, 5, 1), strict=True)]
    clean = codes()
    monkeypatch.setattr("polytoken.generators.noise.MAX_DISTANCES", 1000)  # several parts
    noise = SubTokenNoise(1.0, nearest=6)
    noise.connect(vectors)
    noisy = noise(clean, SIZES, 0).trunk
    for i, table in enumerate(vectors):
        distances = (table.double()[:, None] - table.double()).square().sum(2)
        ranks = distances.argsort(dim=1).argsort(dim=1)[clean[:, i], noisy[:, i]]
        counts = torch.bincount(ranks.flatten()).double()
        assert len(counts) == min(6, len(table)), "none beyond the sixth, itself included; all of a smaller codebook"
        assert ((counts / counts.sum() * len(counts) - 1).abs() < 0.08).all()


def test_nearest_codes_need_vectors() -> None:
    with pytest.raises(ValueError, match="noise.nearest needs the vectors of the codes: call take_code_vectors"):
        SubTokenNoise(nearest=6)(codes(2), SIZES, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"probability": 1.5}, "SubTokenNoise: probability is 1.5; it must be from 0 to 1"),
        ({"per": "image"}, "per is 'image'; it must be sub_code or patch"),
        ({"where": "nowhere"}, "where is 'nowhere'; it must be trunk, head or both"),
        ({"ramp_steps": -1}, "ramp_steps is -1; it must be at least 0"),
        ({"decay_steps": 0}, "decay_steps is 0; it must be at least 1"),
        ({"sample_probability": "normal"}, "sample_probability is 'normal'; it must be uniform or null"),
        ({"nearest": 1}, "nearest is 1; it must be at least 2"),
    ],
)
def test_invalid_arguments_are_rejected(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SubTokenNoise(**arguments)
