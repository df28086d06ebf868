"""Interface of image sources: two splits of images that can be read one by one, and numbered classes."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from typing import Literal

import numpy as np
from PIL import Image

Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = ("train", "validation")
UNLABELLED = "all"  # the one class of images without labels
LARGEST_LABEL = 10_000_000  # of labels that are numbers: one name is kept for each below the largest


class ImageRecords(ABC):
    """The images of one split, in a fixed order. Must be picklable, and cheap to send to worker processes."""

    @abstractmethod
    def __len__(self) -> int:
        """Count the images."""

    @abstractmethod
    def load(self, index: int) -> Image.Image:
        """Read image `index` in its stored mode; raises one of `polytoken.images.UNREADABLE` if that fails."""

    def load_reduced(self, index: int, shorter_side: int) -> Image.Image:
        """Read image `index` with `shorter_side` pixels or more a side, not all of its pixels if that is faster.

        This default reads all of them. A source of JPEGs passes `shorter_side` to `polytoken.images.open_image`.
        """
        return self.load(index)

    @abstractmethod
    def label(self, index: int) -> int:
        """Return the class of image `index`."""

    @abstractmethod
    def describe(self, index: int) -> str:
        """Return the path of image `index`, or another name for it, for messages."""

    def digest(self) -> str:
        """Return a digest of which images these are, in this order, wherever they lie; no image is read.

        A run does not resume with images of another digest. This default knows number and classes of the images: a
        source that knows their names adds them.
        """
        return sha256(np.array([self.label(index) for index in range(len(self))], dtype=np.int64))


class ImageSource(ABC):
    """A data set of images, of one class if it has no labels; a config names its class as `data.source.class_path`."""

    def prepare(self) -> None:  # noqa: B027 - most sources have nothing to prepare
        """Do once on each node what its processes would otherwise all do, such as reading an index into a cache."""

    @abstractmethod
    def split(self, name: Split) -> ImageRecords:
        """List one split without reading its images; raises UserError with path and remedy if it is missing."""

    @property
    @abstractmethod
    def class_to_idx(self) -> dict[str, int]:
        """Class numbers by name. Checkpoints keep them, and a run does not resume with other ones."""


def sha256(*parts: bytes | np.ndarray) -> str:
    """Digest of bytes and arrays, with their lengths."""
    digest = hashlib.sha256()
    for part in parts:
        content = part if isinstance(part, bytes) else np.ascontiguousarray(part).tobytes()
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()
