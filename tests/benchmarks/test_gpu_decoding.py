import pytest
import torch

from benchmarks.gpu import TINY, Bench
from benchmarks.gpu_decoding import bytes_per_position, write

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def test_a_position_reads_the_weights_and_the_positions_so_far() -> None:
    generator = Bench(TINY, DEVICE).generator("llamagen_b")
    weights = sum(one.weight.numel() for one in generator.modules() if isinstance(one, torch.nn.Linear))
    one_position = 2 * 16  # keys and values of one block of width 16
    for positions in (1, 2, 4):
        read = sum(range(1, positions + 1)) / positions * one_position
        assert bytes_per_position(generator, 6, positions) == 4 * (weights + 6 * read)


def test_decoding_ends_after_the_positions_that_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = Bench(TINY, DEVICE).generator("far_base").eval()
    written: list[int] = []
    sample = generator.head.sample
    monkeypatch.setattr(generator.head, "sample", lambda *rest: (written.append(1), sample(*rest))[1])
    for positions in (2, 4):
        written.clear()
        write(generator, torch.zeros(1, dtype=torch.int64), positions)
        assert len(written) == positions
    assert "step" not in vars(generator.trunk)
