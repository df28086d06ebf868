import numpy as np
import pytest
import torch

from polytoken.metrics.frechet import FeatureStatistics
from polytoken.metrics.principal_components import PrincipalComponents


def components_of(rows: torch.Tensor, number: int = 3) -> PrincipalComponents:
    statistics = FeatureStatistics(rows.shape[1])
    for some in rows.split(17):
        statistics.update(some)
    return PrincipalComponents.of(statistics.compute(), number)


def test_scores_equal_a_singular_value_decomposition() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(200, 6, generator=generator) * torch.tensor([1.0, 9.0, 4.0, 0.5, 2.0, 0.1]) + 5
    found = components_of(rows)
    values = rows.double().numpy() - rows.double().numpy().mean(0)
    _, singular, right = np.linalg.svd(values, full_matrices=False)
    expected = values @ right[:3].T / (singular[:3] / np.sqrt(199))
    signs = np.array([np.sign(row[np.abs(row).argmax()]) for row in right[:3]])
    assert np.allclose(found.scores(rows), expected * signs, atol=1e-6)
    assert found.scores(rows.unflatten(0, (20, 10))).shape == (20, 10, 3)
    assert found.scores(rows).std(0) == pytest.approx([1, 1, 1])


def test_features_without_variance_and_with_few_channels_are_zero() -> None:
    rows = torch.stack([torch.arange(40.0) % 7, torch.full((40,), 0.1)], dim=1)
    scores = components_of(rows).scores(rows)
    assert scores.shape == (40, 3) and scores[:, 0].std() == pytest.approx(1)
    assert scores[:, 1:].abs().max() == 0
    assert components_of(torch.full((40, 4), 0.1)).scores(torch.full((2, 4), 0.1)).abs().max() == 0
