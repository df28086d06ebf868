"""Directory, images and weights of a run that a program measures, and the file of its results."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from artifacts.provenance import commit, versions
from artifacts.run_files import MeasuredCheckpoint
from commands.preset import BATCH, image_data, real_images, spread
from commands.progress import track
from datamodules.images import ImageDataModule, check_image_size
from datamodules.sources.base import Split
from polytoken import records
from polytoken.loading import Checkpoint


def directory_of(run: Path) -> Path:
    """Directory of a run that is named by itself or by one of its checkpoints."""
    return run if run.is_dir() else run.parent.parent


def images_of(run: Path, image_size: int) -> ImageDataModule:
    """The images that the configuration of a tokenizer's run names.

    Raises:
        UserError: if it names none, or they have another size than the tokenizer's.
    """
    data = image_data(directory_of(run) / "config.yaml")
    check_image_size(data, image_size, f"the image_size of the tokenizer in {run}")
    return data


def batches_of(data: ImageDataModule, split: Split, at_most: int | None = None) -> Iterator[dict[str, Any]]:
    """Batches of real images, evenly spread if fewer are wanted, with their progress."""
    length = len(data.source.split(split))
    batches = real_images(data, split, spread(length, at_most))
    return track(batches, f"{split} images, batches", total=-(-min(length, at_most or length) // BATCH))


def measured_with(checkpoint: Checkpoint, *packages: str) -> MeasuredCheckpoint:
    """The record of a measurement: its checkpoint, and versions of the packages and of this code.

    Call it before the measurement: a training that goes on replaces the file, whose digest it computes.
    """
    return {"checkpoint": checkpoint.identity, "versions": versions(*packages), "commit": commit()}


def save(run: Path, name: str, result: object) -> Path:
    """Write what was measured into the directory of a run; returns the path of the file."""
    path = directory_of(run) / name
    records.write(path, result)
    return path
