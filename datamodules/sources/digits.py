"""Handwritten digits that ship inside scikit-learn: real images for a machine without network or data."""

from __future__ import annotations

import numpy as np
from PIL import Image

from datamodules.sources.base import ImageRecords, ImageSource, Split, sha256
from polytoken.errors import UserError

VALIDATION_EVERY = 5


class DigitsSource(ImageSource):
    """The 1,797 digits of scikit-learn's `load_digits` (8 x 8 pixels, 10 classes), enlarged bicubically to RGB.

    Every fifth image of each class, in scikit-learn's order, is for validation; no seed is involved.

    Args:
        size: Height and width of the images, in pixels.
    """

    def __init__(self, size: int = 32) -> None:
        if size < 8:
            raise UserError(f"DigitsSource(size={size}): the digits are stored at 8 px, so size must be at least 8.")
        self.size = size

    @property
    def class_to_idx(self) -> dict[str, int]:
        """Class numbers by name: the digit itself."""
        return {str(digit): digit for digit in range(10)}

    def split(self, name: Split) -> DigitsRecords:
        """Return the 1,442 images of `train` or the 355 of `validation`."""
        from sklearn.datasets import load_digits

        digits = load_digits()
        rank_in_class = np.zeros(len(digits.target), dtype=np.int64)
        for digit in range(10):
            members = np.flatnonzero(digits.target == digit)
            rank_in_class[members] = np.arange(len(members))
        is_validation = rank_in_class % VALIDATION_EVERY == VALIDATION_EVERY - 1
        rows = np.flatnonzero(is_validation if name == "validation" else ~is_validation)
        pixels = np.rint(digits.images[rows] * (255 / 16)).astype(np.uint8)  # stored as 0 .. 16
        return DigitsRecords(pixels, digits.target[rows].astype(np.int64), rows, self.size)


class DigitsRecords(ImageRecords):
    """One split of the digits: `pixels` uint8 (n, 8, 8), `labels` and `rows` (n,), `rows` in scikit-learn's order."""

    def __init__(self, pixels: np.ndarray, labels: np.ndarray, rows: np.ndarray, size: int) -> None:
        self.pixels, self.labels, self.rows, self.size = pixels, labels, rows, size

    def __len__(self) -> int:
        return len(self.labels)

    def load(self, index: int) -> Image.Image:
        """Return image `index` as RGB of `size` x `size`."""
        digit = Image.fromarray(self.pixels[index])
        return digit.resize((self.size, self.size), Image.Resampling.BICUBIC).convert("RGB")

    def label(self, index: int) -> int:
        """Return the digit in image `index`."""
        return int(self.labels[index])

    def describe(self, index: int) -> str:
        """Name the row of scikit-learn's table."""
        return f"scikit-learn digits, row {self.rows[index]}"

    def digest(self) -> str:
        """Digest of the stored pixels, the classes, and the size."""
        return sha256(self.pixels, self.labels, np.array(self.size))
