"""Sources of images with captions: a folder with a file of captions, and the embedded photographs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path

import msgspec
from PIL import Image

from datamodules.sources.base import ImageRecords, ImageSource, Split, sha256
from datamodules.sources.photo_captions import CAPTIONS
from datamodules.sources.photos import PHOTOGRAPHS, PhotosRecords, PhotosSource
from polytoken import records
from polytoken.errors import MissingFileError, UserError
from polytoken.images import open_image


class CaptionedRecords(ImageRecords):
    """The images of one split and their captions."""

    @abstractmethod
    def captions(self, index: int) -> Sequence[str]:
        """Return the captions of image `index`, one at least."""


class CaptionedSource(ImageSource):
    """A data set of images with captions."""

    @abstractmethod
    def split(self, name: Split) -> CaptionedRecords: ...


class CaptionedImage(msgspec.Struct):
    """A line of a file of captions."""

    image: str
    captions: list[str]
    split: str


class _Sentence(msgspec.Struct):
    raw: str


class _KarpathyImage(msgspec.Struct):
    filename: str
    split: str
    sentences: list[_Sentence]
    filepath: str = ""  # the folder, in COCO's file


class _KarpathyFile(msgspec.Struct):
    images: list[_KarpathyImage]


class CaptionedFolder(CaptionedSource):
    """A folder of images, and a file in it that names their captions and their splits.

    The file is Karpathy's (`dataset_flickr30k.json`, `dataset_coco.json`), or has a JSON object a line (`.jsonl`):
    `{"image": "photos/1.jpg", "captions": ["a dog", "a brown dog runs"], "split": "train"}`.

    Args:
        root: The folder that the names of the images start from.
        captions: The file, relative to `root`.
        train_split: The file's name of the training split.
        validation_split: The file's name of the split that is measured.
    """

    def __init__(
        self, root: str, captions: str = "captions.jsonl", train_split: str = "train", validation_split: str = "test"
    ) -> None:
        self.root, self.file = Path(root), Path(root, captions)
        self.split_names: dict[Split, str] = {"train": train_split, "validation": validation_split}
        self._images: list[CaptionedImage] | None = None

    @property
    def class_to_idx(self) -> dict[str, int]:
        """One class, as captions say what an image shows."""
        return {"image": 0}

    def split(self, name: Split) -> FolderWithCaptions:
        """List the images of one split.

        Raises:
            MissingFileError: The file of captions or an image is missing.
            UserError: The file is damaged, or has no image of the split, or an image without captions.
        """
        if self._images is None:
            self._images = self._read()
        wanted = self.split_names[name]
        found = [one for one in self._images if one.split == wanted]
        if not found:
            known = ", ".join(sorted({one.split for one in self._images})) or "none"
            raise UserError(
                f"{self.file} has no image of the split '{wanted}', and its splits are {known}: set {name}_split to "
                "one of these"
            )
        if bare := next((one.image for one in found if not any(text.strip() for text in one.captions)), None):
            raise UserError(f"{self.file} names {bare} without a caption: add one, or remove the image")
        if gone := [one.image for one in found if not (self.root / one.image).is_file()]:
            raise MissingFileError(
                f"{self.root} lacks {len(gone)} of the {len(found)} {wanted} images that {self.file.name} names, the "
                f"first being {gone[0]}: name the folder that the names start from as the root of CaptionedFolder"
            )
        return FolderWithCaptions(self.root, found)

    def _read(self) -> list[CaptionedImage]:
        if not self.file.is_file():
            raise MissingFileError(f"{self.file} is missing: set root and captions of CaptionedFolder")
        if self.file.suffix == ".json":
            return [
                CaptionedImage(str(Path(one.filepath, one.filename)), [text.raw for text in one.sentences], one.split)
                for one in records.read(self.file, _KarpathyFile).images
            ]
        with self.file.open("rb") as lines:
            return [
                records.decode(line, CaptionedImage, f"{self.file}, line {number}")
                for number, line in enumerate(lines, 1)
                if line.strip()
            ]


class FolderWithCaptions(CaptionedRecords):
    """The images of one split of a folder."""

    def __init__(self, root: Path, images: list[CaptionedImage]) -> None:
        self.root, self.images = root, images

    def __len__(self) -> int:
        return len(self.images)

    def load(self, index: int) -> Image.Image:
        """Read and decode image `index`."""
        return open_image(self.describe(index))

    def label(self, index: int) -> int:
        """Return the only class."""
        return 0

    def describe(self, index: int) -> str:
        """Return the path of image `index`."""
        return str(self.root / self.images[index].image)

    def captions(self, index: int) -> list[str]:
        """Return the captions of image `index` that hold a word."""
        return [text for text in self.images[index].captions if text.strip()]

    def digest(self) -> str:
        """Digest of the file names and the captions."""
        return sha256(msgspec.json.encode(self.images))


class CaptionedPhotos(PhotosSource, CaptionedSource):
    """Windows of the embedded photographs, which share the captions of their photograph.

    There are as many sets of captions as photographs, 14: this runs the code on real images and real captions, and
    measures little more than which photograph a window is of.
    """

    def split(self, name: Split) -> WindowsWithCaptions:
        """Read the photographs and place the windows of one split."""
        windows = super().split(name)
        return WindowsWithCaptions(windows.pixels, windows.windows, windows.window)


class WindowsWithCaptions(PhotosRecords, CaptionedRecords):
    """Windows into photographs, with captions."""

    def captions(self, index: int) -> tuple[str, ...]:
        """Return the captions of the photograph."""
        return CAPTIONS[PHOTOGRAPHS[self.label(index)].name]
