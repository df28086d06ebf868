import numpy as np
import pytest
import torch
from torch import Tensor
from torch_fidelity.metric_isc import isc_features_to_metric

from polytoken.metrics import InceptionScore


def score(logits: Tensor, num_splits: int = 1, split_size: int | None = None) -> float:
    metric = InceptionScore(logits.shape[1], num_splits, split_size)
    for indices in torch.arange(len(logits)).split(7):
        metric.update(logits[indices], indices)
    return metric.compute().item()


def random_logits(number: int) -> Tensor:
    return torch.randn(number, 6, generator=torch.Generator().manual_seed(0)) * 3


def test_extremes_and_definition() -> None:
    certain = torch.eye(4).repeat(3, 1) * 100
    assert score(certain) == pytest.approx(4)
    assert score(certain[:1].repeat(6, 1)) == pytest.approx(1)
    logits = random_logits(30)
    probability = logits.double().softmax(1)
    divergence = (probability * (probability / probability.mean(0)).log()).sum(1).mean()
    assert score(logits) == pytest.approx(divergence.exp().item())


def test_consecutive_splits_match_adm() -> None:
    """The last split holds the remainder, with equal weight: 20 + 20 + 7 images."""
    logits = random_logits(47)
    expected = []
    for part in np.split(logits.double().softmax(1).numpy(), [20, 40]):
        divergences = part * (np.log(part) - np.log(part.mean(0, keepdims=True)))
        expected.append(np.exp(divergences.sum(1).mean()))
    assert score(logits, 3, 20) == pytest.approx(np.mean(expected))
    assert score(logits, 5, 20) == pytest.approx(np.mean(expected))  # splits without images
    assert score(logits, 3, 20) < score(logits)


def test_ten_splits_match_torch_fidelity() -> None:
    logits = random_logits(50)
    assert score(logits, 10, 5) == pytest.approx(isc_features_to_metric(logits, 10, False)["inception_score_mean"])
    # images in turn: torch-fidelity's splits of the reordered images
    order = torch.arange(50).view(5, 10).T.flatten()
    theirs = isc_features_to_metric(logits[order], 10, False)["inception_score_mean"]
    assert score(logits, 10) == pytest.approx(theirs)


def test_sorted_classes_are_spread_over_the_splits() -> None:
    certain = torch.eye(5).repeat_interleave(10, 0) * 100
    assert score(certain, 5, 10) == pytest.approx(1)
    assert score(certain, 5) == pytest.approx(5)


def test_positions_are_required_and_checked() -> None:
    with pytest.raises(ValueError, match="10 splits needs the images' positions"):
        InceptionScore(6, 10).update(random_logits(3))
    with pytest.raises(ValueError, match="image 40 lies after 2 splits of 20 images"):
        InceptionScore(6, 2, 20).update(random_logits(1), torch.tensor([40]))
