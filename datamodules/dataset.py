"""Data set of images: a row as a tensor, a batch as a dict, and replacement of unreadable images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from datamodules.order import PADDING, Draw, seeded_generator
from datamodules.sources.base import ImageRecords, Split
from polytoken.errors import RunError
from polytoken.images import UNREADABLE

REPLACEMENTS = 16


class UnreadableImage(NamedTuple):
    """An unreadable image, its place, and the reason that the decoder gave."""

    split: Split
    index: int
    place: str
    reason: str


class Example(NamedTuple):
    """One row of a batch: `image` (3, H, W), or None if it is unreadable, and the images skipped for it."""

    image: torch.Tensor | None
    label: int
    index: int
    skipped: tuple[UnreadableImage, ...]


class ImageDataset(Dataset[Example]):
    """Reads the image of a draw and augments it with the random generator of (seed, epoch, index).

    In training, another image, drawn from (seed, epoch, index), replaces an unreadable one, so that batches keep their
    size. In evaluation an unreadable image is left out, since a replacement would count twice.

    Args:
        records: The images of the split.
        transform: Image to tensor.
        split: Its name, for messages.
        seed: Seed of augmentation and replacements.
        replace_unreadable: True for training.
        shorter_side: Pixels a side that the transform needs of a JPEG, which is then decoded at a reduced size; None
            decodes all pixels.
    """

    def __init__(
        self,
        records: ImageRecords,
        transform: Callable[[Image.Image, np.random.Generator], torch.Tensor],
        split: Split,
        seed: int,
        replace_unreadable: bool,
        shorter_side: int | None = None,
    ) -> None:
        self.records, self.transform, self.split, self.seed = records, transform, split, seed
        self.replace_unreadable, self.shorter_side = replace_unreadable, shorter_side

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, draw: Draw | int) -> Example:
        # Lightning's `overfit_batches` replaces our sampler and passes a bare index
        epoch, index = draw if isinstance(draw, tuple) else (0, draw)
        candidates = [index]
        if self.replace_unreadable:
            others = seeded_generator("replacement", self.seed, epoch, index).integers(len(self), size=REPLACEMENTS)
            candidates.extend(others.tolist())
        skipped: list[UnreadableImage] = []
        for candidate in candidates:
            row = 0 if candidate == PADDING else candidate
            generator = seeded_generator("augmentation", self.seed, epoch, row)
            try:
                image = self.transform(self._load(row), generator)
            except UNREADABLE as error:
                place = self.records.describe(row)
                skipped.append(UnreadableImage(self.split, row, place, f"{type(error).__name__}: {error}"))
                continue
            return Example(image, self.records.label(row), candidate, tuple(skipped))
        return Example(None, 0, index, tuple(skipped))

    def _load(self, row: int) -> Image.Image:
        if self.shorter_side is None:
            return self.records.load(row)
        return self.records.load_reduced(row, self.shorter_side)


def collate(examples: Sequence[Example]) -> dict[str, Any]:
    """Stack examples to `image` (B, 3, H, W) float32, `label` (B,) and `index` (B,) int64.

    Unreadable images are left out and listed under `skipped`. The key exists only if there are any, and the data module
    removes it before the model sees the batch.

    Raises:
        RunError: No image of the batch could be read.
    """
    readable = [example for example in examples if example.image is not None]
    skipped = [bad for example in examples for bad in example.skipped]
    if not readable:
        raise RunError(
            f"None of the {len(examples)} images of a batch could be read, the first being {skipped[0].place} "
            f"({skipped[0].reason}): repair or remove these files."
        )
    batch: dict[str, Any] = {
        "image": torch.stack([example.image for example in readable]),
        "label": torch.tensor([example.label for example in readable], dtype=torch.int64),
        "index": torch.tensor([example.index for example in readable], dtype=torch.int64),
    }
    if skipped:
        batch["skipped"] = skipped
    return batch
