"""Scale of text and face fidelity."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.filters import SIDE, filtered, measure
from commands.placed import choose_words
from polytoken.metrics.extractor import ImageFeatures
from tests.support.extractors import MeanColours


class Reader:
    """Reads all originals, and the first word alone of the filtered images; both have the words in one order."""

    name, sha256 = "reader", "0"

    def __init__(self, words: int) -> None:
        self.texts = [word.text for word in choose_words(words, 64, SIDE, 0)]
        self.calls = 0

    def __call__(self, crops: Sequence[np.ndarray]) -> list[str]:
        self.calls += 1
        assert len(crops) == len(self.texts)
        return self.texts if self.calls % 2 else [self.texts[0], *[""] * (len(crops) - 1)]


class Thumbnails(MeanColours):
    """Eight pixels a side, without their mean, as features."""

    def __call__(self, images: Tensor) -> ImageFeatures:
        small = functional.adaptive_avg_pool2d(images.float().mean(1), 8).flatten(1)
        return super().__call__(images)._replace(pooled=small - small.mean(1, keepdim=True))


def test_a_filter_keeps_what_is_smooth() -> None:
    flat, checked = torch.full((1, 3, 8, 8), 200, dtype=torch.uint8), torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    checked[..., ::2, ::2] = checked[..., 1::2, 1::2] = 255
    assert torch.equal(filtered(4, flat), flat)
    assert filtered(2, checked).unique().tolist() in ([127], [128])


def test_words_and_faces_of_each_size_are_measured() -> None:
    results = {result.name: result for result in measure(partial(filtered, 8), "f", 4, Reader(4), MeanColours())}
    assert list(results) == [
        *(f"f/text/{size}px" for size in (8, 16, 32, 64)),
        *(f"f/faces/{size}px" for size in (16, 32, 64, 128)),
    ]
    for name, result in results.items():
        assert result.bound == 1.0
        if "text" in name:
            assert result.value == 0.25


def test_images_that_no_filter_changes_keep_their_faces() -> None:
    results = measure(lambda images: images, "same", 1, Reader(1), Thumbnails())
    assert [result.value for result in results] == [1.0] * 8
