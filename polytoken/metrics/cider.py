"""CIDEr-D of generated captions (Vedantam et al., arXiv 1411.5726, section 4 and appendix).

The released code's form (`coco-caption`): n-grams of 1 to 4 words, counts clipped to those of the reference, a Gaussian
penalty of the difference in length, and document frequencies over the references of the measured images. Words come
from :func:`words`, close to the Penn Treebank's, which the release calls in Java.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

ORDERS = range(1, 5)
SIGMA = 6.0  # of the penalty, in words

_WORD = re.compile(r"\w+(?=n't\b)|n't\b|'\w+|\w+(?:-\w+)*")

Counts = list[Counter[tuple[str, ...]]]  # of the n-grams of each order
Vectors = list[dict[tuple[str, ...], float]]  # likewise, weighted


def words(caption: str) -> list[str]:
    """Words of a caption in lower case, without punctuation; `dog's` and `don't` are two words each."""
    return _WORD.findall(caption.lower())


def cider_d(generated: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Mean CIDEr-D over images, in percent as papers give it; up to 1000.

    Args:
        generated: a caption of each image.
        references: the captions of each image, one at least. With those of a single image all frequencies are 1, and
            the metric is 0.
    """
    counts = [[_counts(one) for one in captions] for captions in references]
    documents: Counter[tuple[str, ...]] = Counter()
    for captions in counts:
        documents.update({gram for one in captions for order in one for gram in order})
    scores = [
        _score(_counts(caption), captions, documents, math.log(len(counts)))
        for caption, captions in zip(generated, counts, strict=True)
    ]
    return 1000.0 * math.fsum(scores) / len(scores)


def _counts(caption: str) -> Counts:
    found = words(caption)
    return [Counter(zip(*(found[start:] for start in range(order)), strict=False)) for order in ORDERS]


def _score(
    candidate: Counts, references: list[Counts], documents: Counter[tuple[str, ...]], log_images: float
) -> float:
    """Mean over references and orders of the clipped cosine of tf-idf vectors, with the penalty of length."""
    total = 0.0
    weighted = _weighted(candidate, documents, log_images)
    for reference in references:
        cosine = sum(map(_clipped_cosine, weighted, _weighted(reference, documents, log_images)))
        penalty = math.exp(-((_length(candidate) - _length(reference)) ** 2) / (2 * SIGMA**2))
        total += penalty * cosine / len(ORDERS)
    return total / len(references)


def _weighted(counts: Counts, documents: Counter[tuple[str, ...]], log_images: float) -> Vectors:
    return [
        {gram: count * (log_images - math.log(max(1, documents[gram]))) for gram, count in order.items()}
        for order in counts
    ]


def _clipped_cosine(candidate: dict[tuple[str, ...], float], reference: dict[tuple[str, ...], float]) -> float:
    shared = math.fsum(
        min(weight, reference.get(gram, 0.0)) * reference.get(gram, 0.0) for gram, weight in candidate.items()
    )
    norms = math.hypot(*candidate.values()) * math.hypot(*reference.values())
    return shared / norms if norms else 0.0


def _length(counts: Counts) -> int:
    """Number of bigrams, by which the released code measures length."""
    return counts[1].total()
