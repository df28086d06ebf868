"""Zero-shot accuracy against a slow reference."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from polytoken.metrics.zero_shot import ZeroShot


def test_shares_equal_a_reference_in_float64() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = functional.normalize(torch.randn(12, 8, generator=generator), dim=-1)
    labels = torch.randint(12, (200,), generator=generator)
    pooled = 3 * vectors[labels] + 2 * torch.randn(200, 8, generator=generator)
    metric = ZeroShot(vectors)
    for rows in torch.arange(200).split(64):
        metric.update(pooled[rows], labels[rows])
    found = metric.compute()
    hits = {1: 0, 5: 0}
    for row, label in zip(pooled.double().numpy(), labels.tolist(), strict=True):
        order = np.argsort(-(vectors.double().numpy() @ (row / np.linalg.norm(row))))
        for rank in hits:
            hits[rank] += label in order[:rank]
    assert 0 < hits[1] < hits[5] < 200
    for rank, count in hits.items():
        share = count / 200
        assert found[f"top{rank}"] == pytest.approx((share, math.sqrt(share * (1 - share) / 200)))


def test_few_classes_and_unusable_features() -> None:
    metric = ZeroShot(torch.eye(3))
    with pytest.raises(ValueError, match="no images were classified"):
        metric.compute()
    metric.update(torch.tensor([[0.0, 2.0, 1.0]]), torch.tensor([2]))
    assert (metric.compute()["top1"].value, metric.compute()["top5"].value) == (0, 1)
    with pytest.raises(ValueError, match="not finite"):
        metric.update(torch.full((1, 3), float("nan")), torch.tensor([0]))
