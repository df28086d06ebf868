"""Mutual information of sub-codes: known distributions, a slow reference, and pairs that shuffles undo."""

import math
from collections import Counter
from itertools import product

import pytest
import torch
from torch import Tensor

from polytoken.metrics.dependency import Dependence, dependencies, entropy, mutual_information

Named = dict[tuple[str, tuple[int, int], int | None], Dependence]


def measured(codes: Tensor, *scales: tuple[int, int]) -> Named:
    return {(one.kind, one.sub_codes, one.scale): one for one in dependencies(codes, scales)}


def brute_force(pairs: list[tuple[int, int]]) -> float:
    """Bits of the plug-in estimate in its textbook form, and the correction (m_x + m_y − m_xy − 1) / 2n."""
    joint, size = Counter(pairs), len(pairs)
    first, second = Counter(x for x, _ in pairs), Counter(y for _, y in pairs)
    nats = sum(n / size * math.log(n * size / (first[x] * second[y])) for (x, y), n in joint.items())
    return (nats + (len(first) + len(second) - len(joint) - 1) / (2 * size)) / math.log(2)


@pytest.mark.parametrize("largest", [5, 2**25])
def test_estimate_equals_a_slow_reference(largest: int) -> None:
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(0, 5, (200,), generator=generator)
    second = (first + torch.randint(0, 3, (200,), generator=generator)) % 5 * (largest // 5)
    expected = brute_force(list(zip(first.tolist(), second.tolist(), strict=True)))
    assert mutual_information(first, second) == pytest.approx(expected, abs=1e-12)


def test_a_known_joint_distribution() -> None:
    """The second code equals the first of 8 with probability 0.6, otherwise it is any of the other 7."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(0, 8, (3000, 1, 9), generator=generator)
    other = (first + torch.randint(1, 8, first.shape, generator=generator)) % 8
    second = torch.where(torch.rand(first.shape, generator=generator) < 0.6, first, other)
    found = measured(torch.stack([first, second], 2), (3, 3))["branches", (0, 1), None]
    expected = 3 + 0.6 * math.log2(0.6) + 0.4 * math.log2(0.4 / 7)
    assert found.bits == pytest.approx(expected, abs=0.02) and found.pairs == 27000


def test_independent_and_equal_codes() -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (2000, 2, 2, 5), generator=generator)
    found = measured(codes, (1, 1), (2, 2))
    kinds = [("neighbours", (0, 0)), ("neighbours", (1, 1)), ("branches", (0, 1))]
    neighbours = product(("neighbours",), ((0, 0), (1, 1)), (1, None))
    assert set(found) == {*neighbours, *product(("branches",), ((0, 1),), (0, 1, None))}
    for kind in kinds:
        one = found[*kind, None]
        assert abs(one.bits) < 4 * one.deviation and one.deviation < 0.005
        assert one.entropy == pytest.approx(4, abs=0.01)
    assert found["neighbours", (0, 0), 1].pairs == 2000 * 2 * 2 and found["branches", (0, 1), 0].pairs == 4000
    codes[:, :, 1] = codes[:, :, 0]
    codes[..., 2], codes[..., 4] = codes[..., 1], codes[..., 3]  # the right columns of 2 × 2
    for kind in kinds:
        one = measured(codes, (1, 1), (2, 2))[*kind, 1]
        assert one.bits == pytest.approx(4, abs=0.03), kind


def test_the_baseline_takes_what_the_position_says() -> None:
    """Each position has codes of its own, so that pairs look dependent unless they are compared with other images."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.arange(9) * 2 + torch.randint(0, 2, (500, 1, 2, 9), generator=generator)
    for one in measured(codes, (3, 3)).values():
        assert abs(one.bits) < 0.01
        assert one.baseline > 2


def test_a_shuffle_moves_whole_images_and_leaves_none_in_place() -> None:
    """Of three images (0, 0, 1) every cycle gives the pairs (0, 0), (0, 1), (1, 0); all views move together."""
    codes = torch.tensor([0, 0, 1]).view(3, 1, 1, 1).expand(3, 2, 2, 4)
    found = measured(codes, (1, 4))["branches", (0, 1), 0]
    pairs = 8 * [(0, 0), (0, 1), (1, 0)]
    assert found.baseline == pytest.approx(brute_force(pairs)) and found.deviation < 1e-9
    assert found.bits == pytest.approx(brute_force(8 * [(0, 0), (0, 0), (1, 1)]) - brute_force(pairs))


def test_means_weigh_scales_by_positions() -> None:
    codes = torch.randint(0, 4, (50, 1, 2, 14), generator=torch.Generator().manual_seed(0))
    found = measured(codes, (1, 1), (2, 2), (3, 3))
    expected = (4 * found["branches", (0, 1), 1].bits + 9 * found["branches", (0, 1), 2].bits) / 13
    assert found["branches", (0, 1), None].bits == pytest.approx(expected)
    assert not any(scale is None for _, _, scale in measured(codes[..., :2], (1, 1), (1, 1)))


def test_entropy_of_one_code_is_zero() -> None:
    assert entropy(torch.zeros(10, dtype=torch.int64)) == 0
