import math

import pytest
import torch
from torch import Tensor

from polytoken.metrics import cknna, linear_cka
from polytoken.metrics.layers import LayerStatistics, TokenSimilarity, half_probe, pearson


def states(depth: int, batch: int, positions: int = 6, width: int = 5, seed: int = 0) -> dict[int, Tensor]:
    stream = torch.Generator().manual_seed(seed)
    return {block: torch.randn(batch, positions, width, generator=stream) for block in range(1, depth + 1)}


def cosine(one: Tensor, other: Tensor) -> float:
    dot = sum(a * b for a, b in zip(one.tolist(), other.tolist(), strict=True))
    return dot / math.sqrt(sum(a * a for a in one.tolist()) * sum(b * b for b in other.tolist()))


def test_similarities_equal_loops_over_batches() -> None:
    metric, batches = TokenSimilarity(3), [states(3, 2), states(3, 4, seed=1)]
    for hidden in batches:
        metric.update(hidden)
    sts, nts = metric.compute()
    for block in (1, 2, 3):
        same = [
            cosine(hidden[block][row, i], hidden[3][row, i])
            for hidden in batches
            for row in range(len(hidden[3]))
            for i in range(6)
        ]
        following = [
            cosine(hidden[block][row, i], hidden[3][row, i + 1])
            for hidden in batches
            for row in range(len(hidden[3]))
            for i in range(5)
        ]
        assert sts[block - 1].item() == pytest.approx(sum(same) / len(same), rel=1e-9)
        assert nts[block - 1].item() == pytest.approx(sum(following) / len(following), rel=1e-9)
    assert sts.dtype == torch.float64


def test_constructed_states_encode_themselves_or_the_next_token() -> None:
    """Row i of the last block is the i-th unit vector; the first block holds it, the second the one after it."""
    rows = torch.eye(7).unsqueeze(0)
    hidden = {1: 3 * rows[:, :6], 2: rows[:, 1:], 3: rows[:, :6]}
    metric = TokenSimilarity(3)
    metric.update(hidden)
    sts, nts = metric.compute()
    assert sts.tolist() == [1, 0, 1]
    assert nts.tolist() == [0, 1, 0]


def test_curves_equal_their_definitions() -> None:
    found, guide = LayerStatistics(2, torch.device("cpu"), k=3), torch.randn(12, 4)
    batches = [states(2, 8, seed=2), states(2, 4, seed=3)]
    for hidden, rows in zip(batches, (guide[:8], guide[8:]), strict=True):
        found.update(hidden, rows)
    curves = found.compute()
    for block in (1, 2):
        pooled = torch.cat([hidden[block].mean(1) for hidden in batches])
        assert curves.cknna[block - 1] == pytest.approx(cknna(pooled, guide, 3).item(), rel=1e-6)
        assert curves.cka[block - 1] == pytest.approx(linear_cka(pooled, guide).item(), rel=1e-6)
    assert (curves.images, curves.positions, curves.k, curves.probe) == (12, 6, 3, None)
    signs = (curves.nts[1] - curves.nts[0]) * (curves.cknna[1] - curves.cknna[0])
    assert curves.correlation == pytest.approx(math.copysign(1, signs))  # two points lie on a line


def test_pearson_equals_numpy() -> None:
    one, other = torch.randn(9), torch.randn(9)
    assert pearson(one, other).item() == pytest.approx(torch.corrcoef(torch.stack([one, other]))[0, 1].item(), abs=1e-6)
    assert pearson(one, torch.ones(9)).isnan()


def test_the_probe_finds_the_class_where_a_block_holds_it() -> None:
    labels = torch.arange(60) % 4 % 3  # alternating: every second row has few classes
    held = torch.nn.functional.one_hot(labels, 3).float() + 0.05 * torch.randn(60, 3)
    assert half_probe(held, labels).value == 1
    found = LayerStatistics(2, torch.device("cpu"), k=3)
    hidden = {1: torch.randn(60, 2, 3), 2: held.unsqueeze(1).expand(-1, 2, -1)}
    found.update(hidden, torch.randn(60, 4))
    found.update_probe(hidden, labels)
    noise, known = found.compute().probe
    assert noise.value < 0.7 and known.value == 1


def test_invalid_input_is_rejected() -> None:
    with pytest.raises(ValueError, match="set k to 2 or more"):
        LayerStatistics(2, torch.device("cpu"), k=1)
    found = LayerStatistics(2, torch.device("cpu"))
    found.update(states(2, 4), torch.randn(4, 3))
    with pytest.raises(ValueError, match="CKNNA with k=10 needs more than 10 images, got 4"):
        found.compute()
