"""Probes against slow references, and on data with known answers."""

import numpy as np
import pytest
import torch

from polytoken.metrics.probes import (
    Labelled,
    accuracy,
    logistic_regression,
    majority,
    nearest_class_mean,
    nearest_neighbours,
    pool,
    standardise,
)


def clouds(count: int, spread: float, seed: int) -> Labelled:
    """Three clusters in the plane, of the classes 2, 5 and 7."""
    generator = torch.Generator().manual_seed(seed)
    which = torch.arange(count) % 3
    centres = torch.tensor([[0.0, 0.0], [6.0, 0.0], [0.0, 6.0]])
    noise = torch.randn(count, 2, generator=generator) * spread
    return Labelled(centres[which] + noise, torch.tensor([2, 5, 7])[which])


def test_nearest_class_mean_equals_a_loop() -> None:
    train, validation = clouds(90, 4.0, 0), clouds(60, 4.0, 1)
    far = Labelled(train.features + 1000, train.labels)  # where |x|² would swallow the difference in float32
    expected = []
    for row in validation.features.double().numpy():
        distances = {
            label: np.sum((row - train.features[train.labels == label].double().numpy().mean(0)) ** 2)
            for label in (2, 5, 7)
        }
        expected.append(min(distances, key=distances.__getitem__))
    assert nearest_class_mean(train, validation.features).tolist() == expected
    assert nearest_class_mean(far, validation.features + 1000).tolist() == expected
    assert len(set(expected)) == 3


@pytest.mark.parametrize("k", [1, 7, 500])
def test_nearest_neighbours_vote_as_in_a_loop(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    train, validation = clouds(90, 4.0, 0), clouds(60, 4.0, 1)
    expected = []
    for row in validation.features.double().numpy():
        cosines = [
            (float(row @ one / np.linalg.norm(row) / np.linalg.norm(one)), label)
            for one, label in zip(train.features.double().numpy(), train.labels.tolist(), strict=True)
        ]
        votes = dict.fromkeys((2, 5, 7), 0.0)
        for cosine, label in sorted(cosines, reverse=True)[:k]:
            votes[label] += np.exp(cosine / 0.07)
        expected.append(max(votes, key=votes.__getitem__))
    assert nearest_neighbours(train, validation.features, k).tolist() == expected
    assert nearest_neighbours(train, validation.features * 9, k).tolist() == expected, "a length changes nothing"
    monkeypatch.setattr("polytoken.metrics.probes.MOST_SIMILARITIES", 700)
    assert nearest_neighbours(train, validation.features, k).tolist() == expected, "in parts"
    assert len(set(expected)) == 3


def test_a_linear_probe_separates_linearly_separable_classes_only() -> None:
    train, validation = clouds(90, 0.5, 0), clouds(60, 0.5, 1)
    assert accuracy(logistic_regression(train, validation.features), validation.labels).value == 1.0
    signs = torch.randn(400, 2, generator=torch.Generator().manual_seed(2))
    crossed = Labelled(signs, (signs.prod(1) > 0).long())
    found = accuracy(logistic_regression(crossed, crossed.features), crossed.labels).value
    assert 0.35 < found < 0.65
    with pytest.raises(ValueError, match="two or more classes"):
        logistic_regression(Labelled(train.features, torch.zeros(90).long()), validation.features)


def test_features_are_standardised_by_training_statistics() -> None:
    generator = torch.Generator().manual_seed(0)
    train = torch.randn(500, 3, generator=generator) * torch.tensor([1e-3, 1.0, 50.0]) + torch.tensor([5.0, 0.0, -9.0])
    train[:, 1] = 0.1  # constant
    validation = train[:7] * 2
    scaled, asked = standardise(train, validation)
    varied = [0, 2]
    assert scaled.mean(0).abs().max() < 1e-5 and scaled[:, 1].abs().max() < 1e-6
    assert torch.allclose(scaled[:, varied].std(0, correction=0), torch.ones(2), atol=1e-5)
    rows = train[:, varied].double().numpy()
    expected = (validation[:, varied].double().numpy() - rows.mean(0)) / rows.std(0)
    assert np.allclose(asked[:, varied], expected, rtol=1e-5)
    assert torch.allclose(asked[:, 1], torch.full((7,), 0.1))


def test_mean_pooling_drops_positions_and_flattening_keeps_them() -> None:
    maps = torch.zeros(2, 3, 2, 2, dtype=torch.bfloat16)
    maps[0, :, 0, 0] = maps[1, :, 1, 1] = 4.0
    pooled, flat = pool(maps, "mean"), pool(maps, "flatten")
    assert pooled.shape == (2, 3) and pooled.dtype == torch.float32 and (pooled == 1).all()
    assert flat.shape == (2, 12) and not torch.equal(flat[0], flat[1])


def test_shares_and_their_errors() -> None:
    found = accuracy(torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2, 3, 0]))
    assert found.value == 0.75 and found.standard_error == pytest.approx((0.75 * 0.25 / 4) ** 0.5)
    assert majority(torch.tensor([3, 3, 1]), torch.tensor([1, 1, 1, 3])).value == 0.25
