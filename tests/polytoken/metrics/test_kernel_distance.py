import pytest
import torch
from torch import Tensor
from torch_fidelity.metric_kid import kid_features_to_metric

from polytoken.metrics.kernel_distance import kernel_distance


def rows(number: int, shift: float = 0.0, seed: int = 0) -> Tensor:
    return torch.randn(number, 16, generator=torch.Generator().manual_seed(seed)) + shift


def test_equals_the_definition() -> None:
    first, second = rows(7), rows(7, 0.3, 1)
    own = between = 0.0
    for i in range(7):
        for j in range(7):
            if i != j:
                own += sum((float(x[i].double() @ x[j].double()) / 16 + 1) ** 3 for x in (first, second))
            between += (float(first[i].double() @ second[j].double()) / 16 + 1) ** 3
    found = kernel_distance(first, second, num_subsets=3, subset_size=7)
    assert found.mean == pytest.approx(own / 42 - 2 * between / 49, rel=1e-9)
    assert found.deviation == pytest.approx(0, abs=1e-12)  # every subset is the whole set


def test_equals_torch_fidelity() -> None:
    first, second = rows(60), rows(60, 0.3, 1)
    arguments = {"kid_subsets": 2, "kid_subset_size": 60, "verbose": False}
    theirs = kid_features_to_metric(first.double(), second.double(), **arguments)
    found = kernel_distance(first, second, num_subsets=2, subset_size=60)
    assert found.mean == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-6)
    # subsets differ from torch-fidelity's, so the means agree within their standard error
    arguments = {"kid_subsets": 100, "kid_subset_size": 30, "verbose": False}
    theirs = kid_features_to_metric(first.double(), second.double(), **arguments)
    found = kernel_distance(first, second, num_subsets=100, subset_size=30)
    assert found.deviation == pytest.approx(theirs["kernel_inception_distance_std"], rel=0.3)
    assert abs(found.mean - theirs["kernel_inception_distance_mean"]) < 4 * found.deviation / 10
    assert found == kernel_distance(first, second, num_subsets=100, subset_size=30)
    assert kernel_distance(first, second, num_subsets=1, subset_size=30).deviation == 0  # over all subsets


def test_similar_sets_have_mean_distance_zero() -> None:
    found = [kernel_distance(rows(40, seed=i), rows(40, seed=100 + i), 1, 40).mean for i in range(50)]
    assert min(found) < 0 < max(found)
    assert abs(sum(found) / 50) < 0.02


def test_invalid_input_is_rejected() -> None:
    with pytest.raises(ValueError, match="40 and 9 images for subsets of 20"):
        kernel_distance(rows(40), rows(9), subset_size=20)
    with pytest.raises(ValueError, match="measured by the same network"):
        kernel_distance(rows(9), rows(9)[:, :3], subset_size=5)
    with pytest.raises(ValueError, match="not finite"):
        kernel_distance(rows(9), rows(9) * torch.inf, subset_size=5)
