"""Interface of image sources: two splits of images that can be read one by one, and numbered classes."""

from __future__ import annotations

import struct
import zlib
from abc import ABC, abstractmethod
from typing import Literal

from PIL import Image

Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = ("train", "validation")

# raised by Pillow on truncated, damaged, missing, foreign or absurdly large files; anything else is a fault of the code
UNREADABLE = (OSError, EOFError, SyntaxError, ValueError, struct.error, zlib.error, Image.DecompressionBombError)


class ImageRecords(ABC):
    """The images of one split, in a fixed order. Must be picklable, and cheap to send to worker processes."""

    @abstractmethod
    def __len__(self) -> int:
        """Count the images."""

    @abstractmethod
    def load(self, index: int) -> Image.Image:
        """Read image `index` in its stored mode; raises one of `UNREADABLE` if that fails."""

    @abstractmethod
    def label(self, index: int) -> int:
        """Return the class of image `index`."""

    @abstractmethod
    def describe(self, index: int) -> str:
        """Return the path of image `index`, or another name for it, for messages."""


class ImageSource(ABC):
    """A labelled data set of images; a config names its class as `data.source.class_path`."""

    @abstractmethod
    def split(self, name: Split) -> ImageRecords:
        """List one split without reading its images; raises UserError with path and remedy if it is missing."""

    @property
    @abstractmethod
    def class_to_idx(self) -> dict[str, int]:
        """Class numbers by name. Checkpoints keep them, and a run does not resume with other ones."""
