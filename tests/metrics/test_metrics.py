import math

import pytest
import torch

from metrics import CodebookStatistics, GroupedMean, paint_patches, psnr, to_uint8


def test_to_uint8_rounds_and_clamps() -> None:
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(values.float() / 127.5 - 1), values)
    assert to_uint8(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]


def test_psnr() -> None:
    first = torch.full((2, 3, 4, 4), 100, dtype=torch.uint8)
    second = first.clone()
    second[0] += 10
    values = psnr(first, second)
    assert values[0].item() == pytest.approx(20 * math.log10(25.5))
    assert math.isfinite(values[1].item()) and values[1] > 60


def test_paint_patches() -> None:
    images = torch.arange(16.0).view(1, 1, 4, 4)
    painted = paint_patches(images, 2)
    assert painted[0, 0, :2, :2].tolist() == [[2.5, 2.5], [2.5, 2.5]]
    assert painted.shape == images.shape


def test_codebook_statistics_over_batches() -> None:
    metric = CodebookStatistics([4, 8])
    metric.update(torch.tensor([[[0, 1], [0, 0]]]))
    metric.update(torch.tensor([[[0, 1], [7, 7]]]))
    result = metric.compute()
    assert result["usage"] == [0.5, 0.25]
    assert result["dead"] == [2, 6]
    assert result["perplexity"] == pytest.approx([2.0, 2.0])


def test_grouped_mean() -> None:
    metric = GroupedMean(3)
    metric.update(torch.tensor([1.0, 2.0]), torch.tensor([0, 2]))
    metric.update(torch.tensor([3.0]), torch.tensor([0]))
    means, overall = metric.compute()
    assert means[[0, 2]].tolist() == [2.0, 2.0]
    assert means[1].isnan()
    assert overall == 2.0
