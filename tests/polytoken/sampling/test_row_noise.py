import math

import pytest
import torch

from polytoken.sampling import RowNoise
from tests.support.host_sync import host_syncs

CPU = torch.device("cpu")
MASK = 2**64 - 1


def test_noise_depends_on_the_row_only() -> None:
    whole = RowNoise(5, 10, 4, CPU).gumbel((3, 1), 50)
    assert torch.equal(RowNoise(5, 12, 1, CPU).gumbel((3, 1), 50), whole[2:3])
    others = [
        RowNoise(6, 10, 4, CPU).gumbel((3, 1), 50),
        RowNoise(5, 10, 4, CPU).gumbel((4, 1), 50),
        RowNoise(5, 10, 4, CPU).gumbel((3, 0), 50),
        RowNoise(5, 10, 4, CPU).gumbel((3, 1, 0), 50),
        RowNoise(5, 10, 4, CPU).gumbel((3, 1, 1), 50),
    ]
    for other in others:
        assert not torch.isclose(other, whole).any()
    assert len(torch.unique(torch.cat([whole, *others]))) == 6 * whole.numel()


def test_bits_equal_splitmix64() -> None:
    """Reference implementation with Python integers."""

    def output(state: int) -> int:
        value = (state + 0x9E3779B97F4A7C15) & MASK
        value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & MASK
        value = (value ^ value >> 27) * 0x94D049BB133111EB & MASK
        return value ^ value >> 31

    assert output(0) == 0xE220A8397B1DCDAF  # the published first value of seed 0
    for seed, first in ((3, 2**40), (-1, 0), (2**63, 7)):
        noise = RowNoise(seed, first, 3, CPU).uniform((9, 2), 4)
        for row in range(3):
            key = output(output(seed & MASK) + first + row & MASK)
            state = output(key ^ output(9 << 16 | 2))
            bits = [output(state + entry * 0x9E3779B97F4A7C15 & MASK) for entry in range(4)]
            assert noise[row].tolist() == [((value >> 12) + 0.5) * 2.0**-52 for value in bits]


def test_keys_may_be_tensors() -> None:
    noise = RowNoise(5, 0, 2, CPU)
    position = torch.tensor(200)
    with host_syncs() as counts:
        found = noise.gumbel((position, 1, 3), 8)
    assert not counts
    assert torch.equal(found, noise.gumbel((200, 1, 3), 8))


def test_noise_of_any_shape() -> None:
    noise = RowNoise(5, 0, 2, CPU)
    assert torch.equal(noise.normal((4,), 3, 2, 2).flatten(1), noise.normal((4,), 12))
    assert noise.uniform((4,)).shape == (2,)


def test_noise_is_gumbel_and_uncorrelated() -> None:
    noise = RowNoise(0, 0, 8, CPU).gumbel((0, 0), 20_000)
    assert noise.isfinite().all()
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.01)
    assert noise.var().item() == pytest.approx(math.pi**2 / 6, abs=0.03)
    uniform = (-(-noise).exp()).exp()
    assert torch.histc(uniform, 20, 0, 1).div(8000).sub(1).abs().max() < 0.06
    neighbours = RowNoise(1, 0, 8, CPU).gumbel((0, 0), 20_000), RowNoise(0, 0, 8, CPU).gumbel((1, 0), 20_000)
    rows = torch.cat([noise, *neighbours])
    correlation = torch.corrcoef(rows) - torch.eye(24)
    assert correlation.abs().max() < 0.035
    assert torch.corrcoef(torch.stack([noise[:, 1:].flatten(), noise[:, :-1].flatten()]))[0, 1].abs() < 0.01


def test_normal_and_uniform_distributions() -> None:
    normal = RowNoise(0, 0, 8, CPU).normal((0,), 20_000).flatten()
    assert normal.mean().item() == pytest.approx(0, abs=0.01)
    assert normal.var().item() == pytest.approx(1, abs=0.015)
    assert normal.pow(4).mean().item() == pytest.approx(3, abs=0.1)
    uniform = RowNoise(0, 0, 8, CPU).uniform((0,), 20_000).flatten()
    assert 0 < uniform.min()
    assert uniform.max() < 1
    assert torch.histc(uniform, 20, 0, 1).div(8000).sub(1).abs().max() < 0.06


def test_large_and_negative_seeds() -> None:
    for seed in (2**63, -1, 2**64 - 1):
        assert RowNoise(seed, 2**40, 1, CPU).gumbel((0, 0), 3).isfinite().all()
