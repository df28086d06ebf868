"""Definition of `fidelity.json` of a tokenizer, its means over sizes, and its tables; without torch, for the report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any, NotRequired, TypedDict

from artifacts.results import Table
from artifacts.run_files import MeasuredCheckpoint, Network

FIDELITY = "fidelity.json"


class TextRow(TypedDict):
    """Words of one size: shares of the original images, and of their reconstructions."""

    pixels: int  # height of a word
    n: int
    original_accuracy: float
    original_similarity: float
    accuracy: float
    similarity: float


class FaceRow(TypedDict):
    """Faces of one size: cosines, and the share of reconstructions that are nearest to their own face."""

    pixels: int
    n: int
    similarity: float
    others: float
    identified: float


class Fidelity(MeasuredCheckpoint):
    """`fidelity.json`."""

    text: list[TextRow]
    faces: list[FaceRow]
    image_size: int
    reader: NotRequired[Network | None]
    extractor: NotRequired[Network | None]
    settings: NotRequired[dict[str, Any]]


def by_size(found: Fidelity) -> dict[str, dict[int, float]]:
    """Each measure by the size in pixels: `text/accuracy` …, `faces/similarity` …, of what was measured."""
    kinds: dict[str, Sequence[Mapping[str, Any]]] = {"text": found["text"], "faces": found["faces"]}
    return {
        f"{kind}/{name}": {row["pixels"]: row[name] for row in rows}
        for kind, rows in kinds.items()
        for name in (rows[0] if rows else ())
        if name not in ("pixels", "n")
    }


def means(found: Fidelity) -> dict[str, float]:
    """Mean of each measure over the sizes, all with the same weight."""
    return {name: fmean(values.values()) for name, values in by_size(found).items()}


def tables(found: Fidelity) -> Iterator[Table]:
    """A table of text and one of faces, of what was measured: a row for each size, and one of their means."""
    if text := found["text"]:
        head = ["height of a word", "T-ACC, originals", "T-ACC ↑", "T-NED, originals", "T-NED ↑"]
        names = ("original_accuracy", "accuracy", "original_similarity", "similarity")
        rows = _rows(found, "text", dict.fromkeys(names, ".1%"))
        yield Table(head, rows, f"Text: {text[0]['n']:,} words a size, read by {_name(found.get('reader'))}")
    if faces := found["faces"]:
        head = ["side of a face", "cosine ↑", "of different faces", "identified ↑"]
        rows = _rows(found, "faces", {"similarity": ".3f", "others": ".3f", "identified": ".1%"})
        yield Table(head, rows, f"Faces: {faces[0]['n']:,} a size, cosine by {_name(found.get('extractor'))}")


def _rows(found: Fidelity, kind: str, forms: Mapping[str, str]) -> list[list[str]]:
    """Cells of the measures of text or faces, each in its format."""
    values, mean = by_size(found), means(found)
    names = {name: f"{kind}/{name}" for name in forms}
    rows = [
        [f"{size} of {found['image_size']} px", *(f"{values[name][size]:{forms[key]}}" for key, name in names.items())]
        for size in values[f"{kind}/similarity"]
    ]
    return [*rows, ["mean", *(f"{mean[name]:{forms[key]}}" for key, name in names.items())]]


def _name(network: Network | None) -> str:
    return network["name"] if network else "an unknown network"
