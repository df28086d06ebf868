import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torchmetrics.image.fid import FrechetInceptionDistance

from polytoken.metrics import FeatureStatistics, Gaussian, frechet_distance


def gaussian(mean: list[float], covariance: torch.Tensor) -> Gaussian:
    return Gaussian(100, torch.tensor(mean, dtype=torch.float64), covariance.double())


def statistics(features: torch.Tensor) -> Gaussian:
    metric = FeatureStatistics(features.shape[1])
    for batch in features.split(7):
        metric.update(batch)
    return metric.compute()


def test_statistics_equal_numpy() -> None:
    features = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)) + 30
    count, mean, covariance = statistics(features)
    assert count == 50
    np.testing.assert_allclose(mean, features.double().mean(0), rtol=1e-12)
    np.testing.assert_allclose(covariance, np.cov(features.double().numpy(), rowvar=False), rtol=1e-9, atol=1e-12)
    with pytest.raises(ValueError, match="at least 2 images, got 1"):
        statistics(features[:1])


def test_distance_equals_closed_forms() -> None:
    one = gaussian([0, 0], torch.diag(torch.tensor([4.0, 9.0])))
    other = gaussian([3, 4], torch.diag(torch.tensor([1.0, 25.0])))
    assert frechet_distance(one, other).item() == pytest.approx(25 + (2 - 1) ** 2 + (3 - 5) ** 2)
    assert frechet_distance(one, one).item() == pytest.approx(0, abs=1e-12)
    scaled = gaussian([0, 0], one.covariance * 9)
    assert frechet_distance(one, scaled).item() == pytest.approx((3 - 1) ** 2 * 13)


def test_distance_equals_scipys_matrix_root() -> None:
    generator = torch.Generator().manual_seed(1)
    one = statistics(torch.randn(200, 12, generator=generator) @ torch.randn(12, 12, generator=generator))
    other = statistics(torch.randn(200, 12, generator=generator) @ torch.randn(12, 12, generator=generator) + 1)
    root = sqrtm((one.covariance @ other.covariance).numpy()).real
    expected = (one.mean - other.mean).square().sum() + (one.covariance + other.covariance).trace() - 2 * root.trace()
    assert frechet_distance(one, other).item() == pytest.approx(expected.item(), rel=1e-8)
    assert frechet_distance(other, one).item() == pytest.approx(expected.item(), rel=1e-8)


def test_equals_torch_fidelity_and_torchmetrics() -> None:
    generator = torch.Generator().manual_seed(3)
    mixing = torch.randn(64, 64, generator=generator) / 8
    first = (torch.randn(300, 64, generator=generator) @ mixing).relu()
    second = (torch.randn(250, 64, generator=generator) @ mixing + 0.2).relu()
    one, other = statistics(first), statistics(second)
    found = frechet_distance(one, other).item()
    pair = [fid_features_to_statistics(features.double()) for features in (first, second)]
    assert found == pytest.approx(fid_statistics_to_metric(*pair, False)["frechet_inception_distance"], rel=1e-9)
    network = torch.nn.Flatten()  # features in place of images
    network.num_features = 64
    theirs = FrechetInceptionDistance(network).set_dtype(torch.float64)
    theirs.update(first.double(), real=True)
    theirs.update(second.double(), real=False)
    assert found == pytest.approx(theirs.compute().item(), rel=1e-6)


@pytest.mark.filterwarnings("ignore:20 images for 64 features")
def test_fewer_images_than_features_warn() -> None:
    features = torch.randn(20, 64, generator=torch.Generator().manual_seed(2))
    assert frechet_distance(statistics(features), statistics(features)).item() == pytest.approx(0, abs=1e-8)
    shifted = frechet_distance(statistics(features), statistics(features + 0.5)).item()
    assert shifted == pytest.approx(64 * 0.25, rel=1e-6)


def test_a_distance_below_zero_is_refused() -> None:
    first, second = gaussian([0.0, 0.0], torch.eye(2)), gaussian([0.0, 0.0], -2 * torch.eye(2))
    with pytest.raises(ValueError, match="a Fréchet distance is -2: a covariance is not positive semi-definite"):
        frechet_distance(first, second)


def test_invalid_statistics_are_rejected() -> None:
    features = torch.randn(20, 20, generator=torch.Generator().manual_seed(2))
    with pytest.warns(UserWarning, match="20 images for 20 features: the covariance is singular"):
        frechet_distance(statistics(features), statistics(features))
    assert statistics(features[:, :19]).shortage is None
    assert Gaussian(None, *statistics(features)[1:]).shortage is None
    with pytest.raises(ValueError, match="between 3 and 4 features"):
        frechet_distance(statistics(features[:, :3]), statistics(features[:, :4]))
    with pytest.raises(ValueError, match="not finite"):
        frechet_distance(statistics(features[:, :3]), statistics(features[:, :3] / 0))
