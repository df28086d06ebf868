import math

import pytest
import torch

from polytoken.metrics import CodebookStatistics, JointCodeStatistics, RecentUsage
from polytoken.metrics import codebook as module


def test_codebook_statistics_over_batches() -> None:
    metric = CodebookStatistics([4, 8])
    metric.update(torch.tensor([[[0, 1], [0, 0]]]))
    metric.update(torch.tensor([[[0, 1], [7, 7]]]))
    result = metric.compute()
    assert result.usage == [0.5, 0.25]
    assert result.dead == [2, 6]
    assert result.perplexity == pytest.approx([2.0, 2.0])
    assert [counts.tolist() for counts in result.counts] == [[2, 2, 0, 0], [2, 0, 0, 0, 0, 0, 0, 2]]


def joint_by_hand(codes: torch.Tensor) -> tuple[float, float]:
    tuples = [tuple(row) for row in codes.transpose(1, 2).flatten(0, 1).tolist()]
    frequencies = [tuples.count(one) / len(tuples) for one in set(tuples)]
    return len(frequencies) / len(tuples), math.exp(-sum(p * math.log(p) for p in frequencies))


@pytest.mark.parametrize(
    ("sizes", "width"),
    [([3, 5], 1), ([2**31, 2**31], 1), ([2**32, 2**31], 2), ([16384] * 4, 1), ([16384] * 5, 5)],
)
def test_joint_usage_for_any_product_of_the_sizes(
    sizes: list[int], width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    # the greatest codes as well, whose key is the longest; and few distinct ones, so that tuples come again
    codes = torch.stack([torch.randint(max(0, size - 3), size, (6, 11), generator=generator) for size in sizes], 1)
    statistics = JointCodeStatistics(sizes)
    assert statistics._keys.shape[1] == width
    for batch in codes.split(4):
        statistics.update(batch)
        statistics._merge()
    assert statistics.compute() == pytest.approx(joint_by_hand(codes))
    assert statistics.compute() == pytest.approx(joint_by_hand(codes))  # compute changes no state


def test_the_order_of_sub_codes_distinguishes_tuples() -> None:
    statistics = JointCodeStatistics([3, 3])
    statistics.update(torch.tensor([[[0, 1], [1, 0]]]))
    assert statistics.compute() == pytest.approx((1.0, 2.0))


def test_pending_tuples_are_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    merges = []
    add_up = module._add_up
    monkeypatch.setattr(module, "_add_up", lambda *args: merges.append(1) or add_up(*args))
    statistics = JointCodeStatistics([4, 4])
    for _ in range(3):
        statistics.update(torch.zeros(1, 2, 2**19, dtype=torch.int64))
    assert len(merges) == 1 and len(statistics._keys) == 1


def test_recent_usage_covers_the_window_only() -> None:
    usage = RecentUsage([4, 2], window=2)
    usage.update(torch.tensor([[[0, 1], [0, 0]]]))
    assert [float(share) for share in usage.compute()] == [0.5, 0.5]
    usage.update(torch.tensor([[[2, 2], [0, 1]]]))
    assert [float(share) for share in usage.compute()] == [0.75, 1]
    usage.update(torch.tensor([[[2, 2], [0, 0]]]))
    assert [float(share) for share in usage.compute()] == [0.25, 1]
    usage.update(torch.tensor([[[2, 2], [0, 0]]]))
    assert [float(share) for share in usage.compute()] == [0.25, 0.5]
