"""Crops of the photographs that ship inside scikit-image and scikit-learn: real images without network or data."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from datamodules.sources.base import ImageRecords, ImageSource, Split, sha256
from polytoken.errors import MissingFileError, UserError
from polytoken.images import open_image
from polytoken.ranges import LARGEST_SEED, at_least, within


@dataclass(frozen=True)
class Photograph:
    """A photograph inside an installed package: the file, and a whole number to reduce its sides by (BOX)."""

    package: str
    file: str
    reduce: int = 1

    @property
    def name(self) -> str:
        """The class of its crops."""
        return Path(self.file).stem

    def read(self) -> np.ndarray:
        """Return uint8 (H, W, 3); greyscale is repeated over the channels.

        Raises:
            MissingFileError: The package is not installed, or this version of it lacks the photograph.
        """
        # find_spec, because importing scikit-learn takes seconds
        spec = importlib.util.find_spec(self.package)
        folders = spec.submodule_search_locations if spec else None
        path = Path(folders[0], self.file) if folders else Path(self.package, self.file)
        if not path.is_file():
            raise MissingFileError(
                f"{path} is missing: install the scikit-image and scikit-learn that pyproject.toml asks for."
            )
        return np.asarray(open_image(path).convert("RGB").reduce(self.reduce))


# Every real photograph in the two wheels, in the order of the names. Left out: drawings, logos, text, phantoms, a
# hologram (cell), a blurred clock, a 102 px detail, and what ships without its terms of use (moon, the motorcycles).
PHOTOGRAPHS = (
    Photograph("skimage", "data/astronaut.png"),
    Photograph("skimage", "data/brick.png"),
    Photograph("skimage", "data/camera.png"),
    Photograph("skimage", "data/chelsea.png"),
    Photograph("sklearn", "datasets/images/china.jpg"),
    Photograph("skimage", "data/coffee.png"),
    Photograph("skimage", "data/coins.png"),
    Photograph("sklearn", "datasets/images/flower.jpg"),
    Photograph("skimage", "data/grass.png"),
    Photograph("skimage", "data/gravel.png"),
    Photograph("skimage", "data/hubble_deep_field.jpg", reduce=2),  # at full size most windows are black
    Photograph("skimage", "data/ihc.png"),
    Photograph("skimage", "data/retina.jpg", reduce=2),  # at full size a window shows a plain orange
    Photograph("skimage", "data/rocket.jpg"),
)


class PhotosSource(ImageSource):
    """Square windows of 14 photographs, one class a photograph.

    The first quarter of each photograph along its longer side (at least one window) is for validation, the rest for
    training, so no validation pixel is ever trained on. The places of the windows are a function of `seed`, the split
    and the photograph.

    Args:
        window: Height and width of a window, in pixels of the photograph.
        train_crops_per_photo: Training images of each class.
        validation_crops_per_photo: Validation images of each class.
        seed: Seed of the windows' places, not negative.
    """

    def __init__(
        self,
        window: int = 96,
        train_crops_per_photo: int = 256,
        validation_crops_per_photo: int = 16,
        seed: int = 0,
    ) -> None:
        at_least(1, self, window=window)
        at_least(1, self, train_crops_per_photo=train_crops_per_photo)
        at_least(1, self, validation_crops_per_photo=validation_crops_per_photo)
        within(0, LARGEST_SEED, self, seed=seed)
        self.window, self.seed = window, seed
        self.crops_per_photo: dict[Split, int] = {
            "train": train_crops_per_photo,
            "validation": validation_crops_per_photo,
        }

    @property
    def class_to_idx(self) -> dict[str, int]:
        """Class numbers by name of the photograph."""
        return {photo.name: index for index, photo in enumerate(PHOTOGRAPHS)}

    def split(self, name: Split) -> PhotosRecords:
        """Read the photographs and place the windows of one split.

        Raises:
            MissingFileError: An installed package lacks one of the photographs.
            UserError: A photograph is too small to hold a training and a validation window side by side.
        """
        pixels = [photo.read() for photo in PHOTOGRAPHS]
        windows = []
        for number, (photo, image) in enumerate(zip(PHOTOGRAPHS, pixels, strict=True)):
            top, left, height, width = self.region(photo, image.shape[:2], name)
            generator = np.random.default_rng((self.seed, ("train", "validation").index(name), number))
            count = self.crops_per_photo[name]
            tops = top + generator.integers(height - self.window, size=count, endpoint=True)
            lefts = left + generator.integers(width - self.window, size=count, endpoint=True)
            windows.append(np.stack([np.full(count, number), tops, lefts], axis=1))
        return PhotosRecords(pixels, np.concatenate(windows), self.window)

    def region(self, photo: Photograph, size: tuple[int, int], name: Split) -> tuple[int, int, int, int]:
        """Return (top, left, height, width) of a split's part of a photograph of `size` (H, W)."""
        along = 1 if size[1] >= size[0] else 0  # the axis of the cut
        band = max(self.window, round(size[along] / 4))
        if size[along] - band < self.window or min(size) < self.window:
            raise UserError(
                f"{photo.file} has {size[0]} x {size[1]} pixels, too few for a training and a validation window of "
                f"{self.window}: set window to {min(*size, max(size) // 2)} or less."
            )
        start, extent = [0, 0], list(size)
        extent[along] = band
        if name == "train":
            start[along], extent[along] = band, size[along] - band
        return start[0], start[1], extent[0], extent[1]


class PhotosRecords(ImageRecords):
    """Windows into photographs: `windows` int64 (n, 3) of photograph, top and left."""

    def __init__(self, pixels: list[np.ndarray], windows: np.ndarray, window: int) -> None:
        self.pixels, self.windows, self.window = pixels, windows, window

    def __len__(self) -> int:
        return len(self.windows)

    def load(self, index: int) -> Image.Image:
        """Return window `index` as RGB."""
        number, top, left = self.windows[index]
        return Image.fromarray(self.pixels[number][top : top + self.window, left : left + self.window])

    def label(self, index: int) -> int:
        """Return the number of the photograph."""
        return int(self.windows[index, 0])

    def describe(self, index: int) -> str:
        """Name the photograph and the place of the window."""
        number, top, left = self.windows[index]
        return f"{PHOTOGRAPHS[number].file}, window at row {top}, column {left}"

    def digest(self) -> str:
        """Digest of the places of the windows and their size."""
        return sha256(self.windows, np.array(self.window))
