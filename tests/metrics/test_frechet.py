import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from metrics import FeatureStatistics, Gaussian, InceptionScore, frechet_distance


def gaussian(mean: list[float], covariance: torch.Tensor) -> Gaussian:
    return Gaussian(100, torch.tensor(mean, dtype=torch.float64), covariance.double())


def statistics(features: torch.Tensor) -> Gaussian:
    metric = FeatureStatistics(features.shape[1])
    for batch in features.split(7):
        metric.update(batch)
    return metric.compute()


def test_statistics_are_numpys() -> None:
    features = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)) + 30
    count, mean, covariance = statistics(features)
    assert count == 50
    np.testing.assert_allclose(mean, features.double().mean(0), rtol=1e-12)
    np.testing.assert_allclose(covariance, np.cov(features.double().numpy(), rowvar=False), rtol=1e-9, atol=1e-12)
    with pytest.raises(ValueError, match="at least 2 images, got 1"):
        statistics(features[:1])


def test_closed_forms() -> None:
    one = gaussian([0, 0], torch.diag(torch.tensor([4.0, 9.0])))
    other = gaussian([3, 4], torch.diag(torch.tensor([1.0, 25.0])))
    assert frechet_distance(one, other).item() == pytest.approx(25 + (2 - 1) ** 2 + (3 - 5) ** 2)
    assert frechet_distance(one, one).item() == pytest.approx(0, abs=1e-12)
    scaled = gaussian([0, 0], one.covariance * 9)
    assert frechet_distance(one, scaled).item() == pytest.approx((3 - 1) ** 2 * 13)


def test_equals_scipys_root_of_the_product() -> None:
    generator = torch.Generator().manual_seed(1)
    one = statistics(torch.randn(200, 12, generator=generator) @ torch.randn(12, 12, generator=generator))
    other = statistics(torch.randn(200, 12, generator=generator) @ torch.randn(12, 12, generator=generator) + 1)
    root = sqrtm((one.covariance @ other.covariance).numpy()).real
    expected = (one.mean - other.mean).square().sum() + (one.covariance + other.covariance).trace() - 2 * root.trace()
    assert frechet_distance(one, other).item() == pytest.approx(expected.item(), rel=1e-8)
    assert frechet_distance(other, one).item() == pytest.approx(expected.item(), rel=1e-8)


def test_fewer_images_than_features() -> None:
    features = torch.randn(20, 64, generator=torch.Generator().manual_seed(2))
    assert frechet_distance(statistics(features), statistics(features)).item() == pytest.approx(0, abs=1e-8)
    shifted = frechet_distance(statistics(features), statistics(features + 0.5)).item()
    assert shifted == pytest.approx(64 * 0.25, rel=1e-6)


def test_inception_score() -> None:
    certain = torch.eye(4).repeat(3, 1) * 100
    metric = InceptionScore(4)
    for batch in certain.split(5):
        metric.update(batch)
    assert metric.compute().item() == pytest.approx(4)
    alike = InceptionScore(4)
    alike.update(certain[:1].repeat(6, 1))
    assert alike.compute().item() == pytest.approx(1)
    logits = torch.randn(30, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    metric.reset()
    metric.update(logits)
    probability = logits.softmax(1)
    divergence = (probability * (probability / probability.mean(0)).log()).sum(1).mean()
    assert metric.compute().item() == pytest.approx(divergence.exp().item())
