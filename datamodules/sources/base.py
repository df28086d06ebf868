"""What a data set must offer: two splits of images that can be read one by one, and a numbering of its classes."""

import struct
import zlib
from abc import ABC, abstractmethod
from typing import Literal

from PIL import Image

Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = ("train", "validation")

# What Pillow raises on truncated, damaged, missing or absurdly large files. Anything else is a mistake in the code.
UNREADABLE = (OSError, EOFError, SyntaxError, ValueError, struct.error, zlib.error, Image.DecompressionBombError)


class ImageRecords(ABC):
    """The images of one split, in a fixed order. Must be picklable, and cheap to hand to worker processes."""

    @abstractmethod
    def __len__(self) -> int:
        """Count the images."""

    @abstractmethod
    def load(self, index: int) -> Image.Image:
        """Read image `index` in whatever mode it is stored; raises one of `UNREADABLE` if it cannot be read."""

    @abstractmethod
    def label(self, index: int) -> int:
        """Return the class of image `index`."""

    @abstractmethod
    def describe(self, index: int) -> str:
        """Say which image this is (a path where there is one), for messages."""


class ImageSource(ABC):
    """A labelled data set of images; the class that a config names as `data.source.class_path`."""

    @abstractmethod
    def split(self, name: Split) -> ImageRecords:
        """List one split without reading its images; raises an error naming path and remedy if there is none."""

    @property
    @abstractmethod
    def class_to_idx(self) -> dict[str, int]:
        """Number the classes by name. Checkpoints carry it, and a run refuses to go on under another numbering."""
