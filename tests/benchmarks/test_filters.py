"""Scale of text and face fidelity."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from benchmarks.filters import filtered, measure
from tests.support.extractors import MeanColours


class Blind:
    """Reads nothing."""

    name, sha256 = "blind", "0"

    def __call__(self, crops: Sequence[np.ndarray]) -> list[str]:
        return [""] * len(crops)


def test_a_filter_keeps_what_is_smooth() -> None:
    flat, checked = torch.full((1, 3, 8, 8), 200, dtype=torch.uint8), torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    checked[..., ::2, ::2] = checked[..., 1::2, 1::2] = 255
    assert torch.equal(filtered(4, flat), flat)
    assert filtered(2, checked).unique().tolist() in ([127], [128])


def test_words_and_faces_of_each_size_are_measured() -> None:
    results = measure(partial(filtered, 2), "filter2", 2, Blind(), MeanColours())
    names = [f"filter2/text/{size}px" for size in (8, 16, 32, 64)] + [
        f"filter2/faces/{size}px" for size in (16, 32, 64, 128)
    ]
    assert [result.name for result in results] == names
    assert [result.value for result in results[:4]] == [0.0] * 4
    assert all(0 <= result.value <= 1 for result in results[4:])
