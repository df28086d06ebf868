"""`timing.json` of a run: sizes of its networks, time and speed of its commands.

They are apart from `metrics.json`, in which two equal runs agree.
"""

from __future__ import annotations

from pathlib import Path
from typing import NotRequired, TypedDict

from polytoken import records

TIMING = "timing.json"


class Session(TypedDict):
    """One process that trained a run; a resumed run has several."""

    first_step: int
    last_step: int
    images: int  # of all ranks
    seconds: float  # with validation
    validation_seconds: float
    memory_bytes: float  # peak of the first GPU, or of the process on a CPU


class Prediction(TypedDict):
    """The process that wrote the last tokens or samples."""

    images: int  # of all ranks
    seconds: float


class Timing(TypedDict):
    """`timing.json`."""

    parameters: NotRequired[dict[str, int]]  # trainable ones of each part: tokenizer, generator, objective …
    fit: NotRequired[list[Session]]
    predict: NotRequired[Prediction]


def read_timing(directory: Path) -> Timing:
    """The times of a run; none if it has recorded none. A broken file is set aside with a warning."""
    return records.read_derived(directory / TIMING, Timing) or {}


def write_timing(directory: Path, timing: Timing) -> None:
    """Replace the file."""
    records.write(directory / TIMING, timing)


def training_seconds(timing: Timing) -> float:
    """Time of all sessions, with validation."""
    return sum(session["seconds"] for session in timing.get("fit", []))


def images_per_second(timing: Timing) -> float | None:
    """Speed of training without validation, or of a prediction; None if nothing was recorded."""
    sessions, predicted = timing.get("fit", []), timing.get("predict")
    images = sum(session["images"] for session in sessions)
    seconds = training_seconds(timing) - sum(session["validation_seconds"] for session in sessions)
    if not sessions and predicted is not None:
        images, seconds = predicted["images"], predicted["seconds"]
    return images / seconds if images and seconds > 0 else None
