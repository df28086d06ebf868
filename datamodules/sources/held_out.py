"""A share of the training images for validation, for data sets that have one split."""

from __future__ import annotations

import numpy as np
from PIL import Image

from datamodules.sources.base import ImageRecords, Split, sha256
from polytoken.errors import UserError

SEED = 20_240_611  # a constant of the data, not of the run: every seed trains on the same images


def part(records: ImageRecords, held_out: float, split: Split, place: str) -> SelectedRecords:
    """Return the images of a training split that stay in it, or those held out for validation.

    Whether image i is held out is a function of i and the share alone: images that are added later at the end move no
    others, and a larger share holds out the same images and more.

    Args:
        records: The training split.
        held_out: Share of the images that are held out.
        split: The part to return.
        place: The data set, for the message.

    Raises:
        UserError: One of the parts is empty.
    """
    outside = np.random.default_rng(SEED).random(len(records)) < held_out
    if outside.all() or not outside.any():
        raise UserError(
            f"held_out={held_out} of the {len(records)} training images of {place} leaves one of the splits empty: "
            "set another share."
        )
    return SelectedRecords(records, np.flatnonzero(outside if split == "validation" else ~outside))


class SelectedRecords(ImageRecords):
    """Some images of a split: `rows` int64 (n,), in increasing order."""

    def __init__(self, records: ImageRecords, rows: np.ndarray) -> None:
        self.records, self.rows = records, rows

    def __len__(self) -> int:
        return len(self.rows)

    def load(self, index: int) -> Image.Image:
        """Read image `index`."""
        return self.records.load(int(self.rows[index]))

    def load_reduced(self, index: int, shorter_side: int) -> Image.Image:
        return self.records.load_reduced(int(self.rows[index]), shorter_side)

    def label(self, index: int) -> int:
        """Return the class of image `index`."""
        return self.records.label(int(self.rows[index]))

    def describe(self, index: int) -> str:
        """Name image `index` as the whole split does."""
        return self.records.describe(int(self.rows[index]))

    def digest(self) -> str:
        """Digest of the whole split and of the rows."""
        return sha256(self.records.digest().encode(), self.rows)
