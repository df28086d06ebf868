import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from polytoken.metrics import SubspaceCosines, cknna, linear_cka


def features(count: int, width: int, seed: int) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(width: int) -> Tensor:
    return torch.linalg.qr(features(width, width, 7)).Q


def slow_hsic(one: list[list[float]], other: list[list[float]]) -> float:
    m = len(one)
    trace = sum(one[i][j] * other[j][i] for i in range(m) for j in range(m) if i != j)
    sum_one = sum(one[i][j] for i in range(m) for j in range(m) if i != j)
    sum_other = sum(other[i][j] for i in range(m) for j in range(m) if i != j)
    product = sum(one[i][j] * other[j][n] for i in range(m) for j in range(m) for n in range(m) if i != j and j != n)
    return (trace + sum_one * sum_other / ((m - 1) * (m - 2)) - 2 * product / (m - 2)) / (m * (m - 3))


def slow_cknna(first: Tensor, second: Tensor, k: int) -> float:
    def kernel(rows: Tensor) -> list[list[float]]:
        unit = [[x / math.sqrt(sum(y * y for y in row)) for x in row] for row in rows.tolist()]
        return [[sum(a * b for a, b in zip(one, other, strict=True)) for other in unit] for one in unit]

    def near(values: list[list[float]]) -> list[set[int]]:
        m = len(values)
        return [set(sorted((j for j in range(m) if j != i), key=lambda j: -values[i][j])[:k]) for i in range(m)]

    def similarity(one: list[list[float]], other: list[list[float]]) -> float:
        both = [a & b for a, b in zip(near(one), near(other), strict=True)]
        masked = [
            [[x if j in both[i] else 0.0 for j, x in enumerate(row)] for i, row in enumerate(values)]
            for values in (one, other)
        ]
        return slow_hsic(*masked)

    one, other = kernel(first), kernel(second)
    return similarity(one, other) / (math.sqrt(similarity(one, one) * similarity(other, other)) + 1e-6)


@pytest.mark.parametrize("k", [2, 5])
def test_cknna_equals_loops(k: int) -> None:
    first = features(20, 6, 0)
    second = first @ features(6, 4, 1) + features(20, 4, 2)
    assert cknna(first, second, k).item() == pytest.approx(slow_cknna(first, second, k), rel=1e-9)


def test_cknna_of_raw_rows_depends_on_their_lengths() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(40, 6, generator=generator) * torch.rand(40, 1, generator=generator) for _ in range(2))
    units = [functional.normalize(one.double(), dim=1) for one in (first, second)]
    assert cknna(*units, k=5, unit_rows=False).item() == pytest.approx(cknna(first, second, 5).item(), rel=1e-9)
    assert cknna(first, second, 5, unit_rows=False).item() != pytest.approx(cknna(first, second, 5).item(), rel=1e-3)


def test_cknna_properties() -> None:
    first, second = features(300, 8, 0), features(300, 8, 1)
    assert cknna(first, first).item() == pytest.approx(1, abs=1e-3)
    assert cknna(first, first @ rotation(8) * 5).item() == pytest.approx(1, abs=1e-3)
    assert abs(cknna(first, second).item()) < 0.05
    assert cknna(first.float(), second).dtype == torch.float64
    lengths = features(300, 1, 3).abs() + 0.1  # rows are scaled to unit length
    assert cknna(first, second * lengths).item() == pytest.approx(cknna(first, second).item(), rel=1e-9)


def test_cknna_rejects_unsuitable_k() -> None:
    with pytest.raises(ValueError, match="k=10 needs more than 10 images, got 10"):
        cknna(features(10, 3, 0), features(10, 3, 1))
    with pytest.raises(ValueError, match="set k to 2 or more"):
        cknna(features(10, 3, 0), features(10, 3, 1), k=1)
    with pytest.raises(ValueError, match="features of 10 and of 11 images"):
        cknna(features(10, 3, 0), features(11, 3, 1))


def test_linear_cka_equals_kernels_and_is_invariant() -> None:
    first, second = features(40, 5, 0), features(40, 3, 1) + features(40, 5, 0)[:, :3]
    centring = torch.eye(40, dtype=torch.float64) - 1 / 40
    one, other = (centring @ rows @ rows.T @ centring for rows in (first, second))
    expected = (one * other).sum() / (one.norm() * other.norm())
    assert linear_cka(first, second).item() == pytest.approx(expected.item(), rel=1e-9)
    assert linear_cka(first, first @ rotation(5) * 3 + 2).item() == pytest.approx(1)
    assert linear_cka(features(4000, 4, 2), features(4000, 4, 3)).item() < 0.01
    assert linear_cka(first, torch.ones(40, 2)).isnan()


def test_cosines_of_subspaces_over_batches() -> None:
    parts = tuple(features(6, 4, seed).view(6, 4, 1, 1).expand(6, 4, 2, 3) * (1 + seed) for seed in range(2))
    narrow = features(6, 3, 9).view(6, 3, 1, 1).expand(6, 3, 2, 3)
    metric = SubspaceCosines(3)
    metric.update(tuple(part[:2] for part in (*parts, narrow)))
    metric.update(tuple(part[2:] for part in (*parts, narrow)))
    cosines, squares = metric.compute()
    expected = torch.cosine_similarity(parts[0], parts[1], dim=1)
    assert cosines[0, 1].item() == pytest.approx(expected.mean().item(), abs=1e-6)
    assert squares[1, 0].item() == pytest.approx(expected.square().mean().item(), abs=1e-6)
    assert squares.diagonal().tolist() == pytest.approx([1, 1, 1], abs=1e-6)
    assert cosines[0, 2].isnan() and cosines[2, 1].isnan()
