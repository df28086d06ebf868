"""Fidelity of text and of faces after a tokenizer, in the manner of TokBench (arXiv 2505.18142)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor
from torch.nn import functional
from torchmetrics.functional.text import edit_distance

from polytoken.errors import UserError


class TextScores(NamedTuple):
    """Agreement of read with written words; upper and lower case, and spaces, do not count.

    Attributes:
        accuracy: share of words that are read exactly (T-ACC).
        similarity: mean of 1 − edit distance / length of the longer word (T-NED).
    """

    accuracy: float
    similarity: float


def text_scores(read: Sequence[str], written: Sequence[str]) -> TextScores:
    """Score what a reader has read, with what was written."""
    read, written = ([plain(word) for word in words] for words in (read, written))
    distances = edit_distance(read, written, reduction="none").tolist()
    longest = [max(len(one), len(other)) for one, other in zip(read, written, strict=True)]
    similarities = [1 - distance / length for distance, length in zip(distances, longest, strict=True)]
    return TextScores(similarities.count(1.0) / len(similarities), sum(similarities) / len(similarities))


def plain(word: str) -> str:
    """A word as it is compared: without spaces and case."""
    return "".join(word.casefold().split())


class FaceScores(NamedTuple):
    """Agreement of embeddings of faces and of their reconstructions.

    Attributes:
        similarity: mean cosine of a face and its reconstruction (F-Sim).
        others: mean cosine of two different faces, a lower bound of a useful similarity.
        identified: share of the reconstructions whose nearest face is their own.
    """

    similarity: float
    others: float
    identified: float


def face_scores(faces: Tensor, reconstructions: Tensor) -> FaceScores:
    """Score embeddings (N, D) of faces and of their reconstructions.

    Raises:
        UserError: if there are fewer than two faces.
    """
    if (count := len(faces)) < 2:
        raise UserError(f"there are {count} faces, and identification needs at least 2")
    faces, reconstructions = (functional.normalize(one.double(), dim=1) for one in (faces, reconstructions))
    cosines = reconstructions @ faces.T
    among = faces @ faces.T
    others = (among.sum() - among.trace()) / (count * (count - 1))
    own = cosines.argmax(dim=1).eq(cosines.new_tensor(range(count))).double().mean()
    return FaceScores(cosines.diagonal().mean().item(), others.item(), own.item())
