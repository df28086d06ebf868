import math

import pytest
import torch

from polytoken.metrics.uniformity import UniformityStatistics, bins_hit, entropy_ratio, ks_to_uniform, rmse_to_uniform
from polytoken.quantizers.finite_scalar import bound, vectors_to_digits

COUNT = 500_000  # of the paper's figure 2
NORMAL = torch.special.ndtri(
    (torch.arange(COUNT, dtype=torch.float64) + 0.5) / COUNT
)  # evenly spaced quantiles of N(0, 1)


@pytest.mark.parametrize(
    ("alpha", "ks", "rmse"),
    [
        (1.0, 0.11740, 0.16671),
        (1.2, 0.07685, 0.10920),
        (1.3, 0.05898, 0.08319),
        (1.5, 0.02854, 0.03653),
        (1.6, 0.01727, 0.01717),
        (1.65, 0.01297, 0.01140),
        (1.7, 0.00956, 0.01321),
        (1.702, 0.00949, 0.01343),
        (1.8, 0.02102, 0.02865),
        (2.0, 0.04423, 0.06256),
        (2.4, 0.08492, 0.12152),
    ],
)
def test_distance_of_a_bounded_normal_to_the_uniform(alpha: float, ks: float, rmse: float) -> None:
    bounded = bound(NORMAL, alpha)
    assert ks_to_uniform(bounded).item() == pytest.approx(ks, abs=1e-5)
    assert rmse_to_uniform(bounded).item() == pytest.approx(rmse, abs=1e-5)
    # equal to the integrals sup |Φ(z) − σ(αz)|, and the distance of f(z) to 2Φ(z) − 1 under the normal density
    z = torch.linspace(-8, 8, 160_001, dtype=torch.float64)
    gap = torch.special.ndtr(z) - torch.sigmoid(alpha * z)
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    assert gap.abs().max().item() == pytest.approx(ks, abs=1e-5)
    assert (torch.trapezoid(4 * gap.square() * density, z)).sqrt().item() == pytest.approx(rmse, abs=1e-5)


def test_a_random_draw_of_the_papers_size_is_close() -> None:
    """The RMSE of 500,000 draws varies by up to a few per cent."""
    draws = torch.randn(COUNT, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert ks_to_uniform(bound(draws, 1.6)).item() == pytest.approx(0.01727, abs=0.002)
    assert rmse_to_uniform(bound(draws, 1.6)).item() == pytest.approx(0.01717, abs=0.001)


def test_minima_lie_between_points_of_the_papers_grid() -> None:
    """KS is least at 1.702, the logistic constant, and RMSE near 1.65; on the paper's grids both are least at 1.6."""
    alphas = torch.arange(1.600, 1.760, 0.002, dtype=torch.float64).tolist()
    coarse = NORMAL[::25]
    assert min(alphas, key=lambda alpha: ks_to_uniform(bound(NORMAL, alpha))) == pytest.approx(1.702, abs=0.001)
    assert min(alphas, key=lambda alpha: rmse_to_uniform(bound(coarse, alpha))) == pytest.approx(1.65, abs=0.02)
    grid = [1.0, 1.2, 1.3, 1.6, 1.8, 2.0, 2.4]
    for distance in (ks_to_uniform, rmse_to_uniform):
        assert min(grid, key=lambda alpha: distance(bound(NORMAL, alpha))) == 1.6


def test_distances_compare_both_sides_of_a_jump() -> None:
    assert ks_to_uniform(torch.zeros(10)).item() == pytest.approx(0.5)
    assert ks_to_uniform(torch.tensor([1.0])).item() == 1.0  # all of F lies above
    assert ks_to_uniform(torch.tensor([-1.0])).item() == 1.0
    assert rmse_to_uniform(torch.tensor([0.5, -0.5])).item() == 0.0  # paired after sorting
    assert rmse_to_uniform(torch.tensor([1.0, 1.0])).item() == pytest.approx(math.sqrt((0.5**2 + 1.5**2) / 2))


ENTROPIES = {  # (L, cells): the share of log L at α = 1.6 and at α = 2
    (5, "rounding"): (0.956, 0.993),
    (9, "rounding"): (0.972, 0.993),
    (17, "rounding"): (0.983, 0.993),
    (33, "rounding"): (0.990, 0.993),
    (5, "equal"): (0.9997, 0.9898),
    (9, "equal"): (0.9987, 0.9911),
    (17, "equal"): (0.9976, 0.9928),
    (33, "equal"): (0.9970, 0.9941),
}


@pytest.mark.parametrize(("levels", "cells"), ENTROPIES)
def test_entropy_of_the_levels_of_a_bounded_normal(levels: int, cells: str) -> None:
    """Tanh has the higher entropy for the published cells, α = 1.6 for equal cells."""
    ratios = []
    for alpha in (1.6, 2.0):
        digits = vectors_to_digits(bound(NORMAL, alpha)[:, None], torch.tensor([levels]), cells)
        counts = torch.bincount(digits.flatten(), minlength=levels)
        ratios.append(entropy_ratio(counts).item())
        assert bins_hit(counts) == 1.0
    assert ratios == pytest.approx(ENTROPIES[levels, cells], abs=6e-4)
    assert (ratios[0] > ratios[1]) == (cells == "equal")


def test_entropy_ratio_and_bins_hit() -> None:
    assert entropy_ratio(torch.tensor([3, 3, 3, 3])).item() == pytest.approx(1.0)
    assert entropy_ratio(torch.tensor([5, 0, 5, 0])).item() == pytest.approx(0.5)
    assert entropy_ratio(torch.tensor([9, 0])).item() == 0.0
    assert bins_hit(torch.tensor([5, 0, 5, 0])).item() == 0.5


def sample(channels: int, count: int = 20_000) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    scale = torch.linspace(0.5, 2.0, channels)
    return bound(scale * torch.randn(count, channels, generator=generator) + 0.1, 1.6)


def test_histogram_is_within_its_bound_of_the_exact_values() -> None:
    values, levels = sample(3), torch.tensor([3, 5, 8])
    digits = vectors_to_digits(values, levels)
    for resolution in (16, 256, 4096):
        metric = UniformityStatistics([3, 5, 8], resolution)
        metric.update(values, digits)
        figures = metric.compute()
        ks = torch.stack([ks_to_uniform(column) for column in values.T]).mean().item()
        rmse = torch.stack([rmse_to_uniform(column) for column in values.T]).mean().item()
        assert ks - 1 / resolution <= figures.ks <= ks + 1e-9
        assert figures.rmse_uniform == pytest.approx(rmse, abs=1 / resolution)
        counts = [torch.bincount(column, minlength=size) for column, size in zip(digits.T, (3, 5, 8), strict=True)]
        assert figures.entropy_ratio == pytest.approx(sum(entropy_ratio(count).item() for count in counts) / 3)


def test_batches_are_summed_and_levels_counted_per_channel() -> None:
    values, levels = sample(2, 1000), torch.tensor([17, 4])
    values[:, 1] = values[:, 1].clamp(max=-0.5)
    digits = vectors_to_digits(values, levels)
    whole, halves = UniformityStatistics([17, 4]), UniformityStatistics([17, 4])
    whole.update(values, digits)
    halves.update(values[:300], digits[:300])
    halves.update(values[300:], digits[300:])
    assert whole.compute() == halves.compute()
    hit = [len(column.unique()) for column in digits.T]
    assert hit[1] == 2
    assert whole.compute().bins_hit == pytest.approx((hit[0] / 17 + hit[1] / 4) / 2)


def test_values_in_one_bin_are_spread_over_all_quantiles() -> None:
    """A collapsed channel: 1,000 times 0 against U(−1, 1), whose standard deviation is 1/√3."""
    metric = UniformityStatistics([3])
    metric.update(torch.zeros(1000, 1), torch.ones(1000, 1, dtype=torch.int64))
    figures = metric.compute()
    assert figures.rmse_uniform == pytest.approx(rmse_to_uniform(torch.zeros(1000)).item(), abs=1e-4)
    assert figures.rmse_uniform == pytest.approx(3**-0.5, abs=1e-4)
    assert (figures.entropy_ratio, figures.bins_hit) == (0.0, pytest.approx(1 / 3))


def test_ends_of_the_range_are_counted() -> None:
    metric = UniformityStatistics([2])
    metric.update(torch.tensor([[-1.0], [1.0]]), torch.tensor([[0], [1]]))
    assert metric.value_counts[0, 0] == metric.value_counts[0, -1] == 1
    assert metric.compute().ks == pytest.approx(0.5, abs=1 / 4096)
