"""CIDEr-D against values computed by hand and a slow reference, and BLEU by its definition."""

import math
import random

import numpy as np
import pytest

from polytoken.metrics.captions import caption_metrics
from polytoken.metrics.cider import cider_d, words


def slow_cider_d(generated: list[str], references: list[list[str]]) -> float:
    """Dense float64 vectors over all n-grams, in plain loops."""

    def grams(text: str, order: int) -> list[str]:
        found = text.split()
        return [" ".join(found[i : i + order]) for i in range(len(found) - order + 1)]

    scores = []
    for caption, captions in zip(generated, references, strict=True):
        score = 0.0
        for order in range(1, 5):
            every = sorted({g for texts in [generated, *references] for text in texts for g in grams(text, order)})
            frequency = np.array(
                [sum(any(g in grams(text, order) for text in texts) for texts in references) for g in every]
            )
            weight = np.log(len(references) / np.maximum(frequency, 1.0))
            vector = np.array([grams(caption, order).count(g) for g in every], dtype=np.float64) * weight
            for text in captions:
                other = np.array([grams(text, order).count(g) for g in every], dtype=np.float64) * weight
                norms = np.linalg.norm(vector) * np.linalg.norm(other)
                distance = len(grams(caption, 2)) - len(grams(text, 2))
                if norms:
                    clipped = np.minimum(vector, other) @ other
                    score += clipped / norms * math.exp(-(distance**2) / 72) / len(captions) / 4
        scores.append(10 * score)
    return 100 * float(np.mean(scores))


def test_it_equals_the_slow_reference() -> None:
    draw = random.Random(0)

    def caption() -> str:
        return " ".join(draw.choices(["a", "red", "blue", "cat", "cup", "on", "the", "table"], k=draw.randint(1, 9)))

    references = [[caption() for _ in range(draw.randint(1, 4))] for _ in range(12)]
    generated = [draw.choice(texts) if draw.random() < 0.5 else caption() for texts in references]
    found = cider_d(generated, references)
    assert found == pytest.approx(slow_cider_d(generated, references), rel=1e-12) and found > 50


OTHER = ["grey stones in a wide river bed"]


@pytest.mark.parametrize("copies", [1, 3])
def test_a_perfect_match_is_1000_whatever_the_number_of_equal_references(copies: int) -> None:
    references = [["the red cat sleeps here"] * copies, OTHER]
    assert cider_d(["The red cat sleeps here.", OTHER[0]], references) == pytest.approx(1000)


def test_disjoint_captions_and_those_of_a_single_image_are_0() -> None:
    assert cider_d(["two blue cups", "one dog"], [["the red cat sleeps here"], OTHER]) == 0
    assert cider_d(["the red cat sleeps here"], [["the red cat sleeps here"]]) == 0
    assert cider_d(["", ""], [["the red cat sleeps here"], OTHER]) == 0


def test_a_shorter_caption_by_hand() -> None:
    """Every n-gram is that of one image of two, so that its weight is log 2 and cancels; the lengths differ by 2."""
    references = [["one two three four five six"], OTHER]
    cosines = 4 / math.sqrt(4 * 6), 3 / math.sqrt(3 * 5), 2 / math.sqrt(2 * 4), 1 / math.sqrt(1 * 3)
    expected = 1000 * sum(cosines) / 4 * math.exp(-4 / 72) / 2
    assert cider_d(["one two three four", "nothing"], references) == pytest.approx(expected)


def test_repeated_words_are_clipped() -> None:
    references = [["red cat"], OTHER]
    unigrams = 2 / math.sqrt((9 + 1) * 2)  # counts 3 and 1 against 1 and 1
    bigrams = 1 / math.sqrt(2**2 + 1)  # red red twice, red cat once
    expected = 1000 * (unigrams + bigrams) / 4 * math.exp(-4 / 72) / 2
    assert cider_d(["red red red cat", "nothing"], references) == pytest.approx(expected)


def test_words_of_all_images_weigh_nothing() -> None:
    assert cider_d(["a", "a"], [["a cat"], ["a dog"]]) == 0


def test_words() -> None:
    assert words("A man's dog doesn't wear a T-shirt, it is \"free\"!") == (
        ["a", "man", "'s", "dog", "does", "n't", "wear", "a", "t-shirt", "it", "is", "free"]
    )


def test_bleu_by_its_definition() -> None:
    """All words of the first occur, 3 of its 5 bigrams do, and its length is a reference's."""
    metrics = caption_metrics(
        ["the cat sat on the mat!"], [["The cat is on the mat", "a cat on a mat sat by the door", "mat"]]
    )
    assert metrics["bleu_1"] == pytest.approx(100 * 6 / 6)
    assert metrics["bleu_2"] == pytest.approx(100 * math.sqrt(6 / 6 * 3 / 5))
    short = caption_metrics(["the cat"], [["the cat is on the mat"]])
    assert short["bleu_1"] == pytest.approx(100 * math.exp(1 - 6 / 2))
    assert short["bleu_4"] == 0 and set(short) == {"bleu_1", "bleu_2", "bleu_3", "bleu_4", "cider_d"}
