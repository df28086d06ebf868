"""Images with words or faces at known places, for `commands.fidelity`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import ceil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from datamodules.sources.listing import list_images
from polytoken.errors import UserError
from polytoken.images import UNREADABLE, open_image, to_rgb

FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSansMono")  # files of matplotlib
LETTERS = (4, 8)  # of a word
LEAST_CHOICE = 20
LUMINANCE = (0.299, 0.587, 0.114)
CONTRAST = 100  # least difference of ink and paper in luminance, of 255
GREY = (128, 128, 128)


class Box(NamedTuple):
    """A place in a batch of images, in pixels."""

    image: int
    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True)
class Placed:
    """Images uint8 (B, 3, S, S), and the places of words or faces in them."""

    images: Tensor
    boxes: Sequence[Box]

    def crops(self, images: Tensor) -> list[Tensor]:
        """The pixels (3, h, w) of each place in these images, or in their reconstructions (B, 3, S, S)."""
        return [
            images[box.image, :, box.top : box.top + box.height, box.left : box.left + box.width] for box in self.boxes
        ]


class Word(NamedTuple):
    """A word and the font it is written in."""

    text: str
    font: str

    def width(self, height: int) -> int:
        """Width of its box at this height, in pixels, with a margin on both sides."""
        return ceil(_font(self.font, height).getlength(self.text)) + 2 * _margin(height)


def choose_words(number: int, largest: int, image_size: int, seed: int) -> list[Word]:
    """Draw English words (scikit-learn's list of stop words) of 4 to 8 letters, each in one of `FONTS`.

    Args:
        number: of words.
        largest: the greatest height of their boxes; only words that fit an image at this height are drawn.
        image_size: side of an image, in pixels.
        seed: of the choice.

    Raises:
        UserError: if fewer than 20 different ones fit.
    """
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    texts = sorted(text for text in ENGLISH_STOP_WORDS if LETTERS[0] <= len(text) <= LETTERS[1])
    fitting = [word for text in texts for font in FONTS if (word := Word(text, font)).width(largest) <= image_size]
    if (different := len({word.text for word in fitting})) < LEAST_CHOICE:
        raise UserError(
            f"{different} of {len(texts)} words fit an image of {image_size} pixels at a height of {largest} pixels: "
            "leave this height out"
        )
    return [fitting[row] for row in np.random.default_rng(seed).integers(len(fitting), size=number)]


def place_words(words: Sequence[Word], height: int, image_size: int, seed: int) -> Placed:
    """Write words below each other, at random distances from the left, in two random colours an image.

    Args:
        words: in the order of the places.
        height: of a word's box, from the highest ascender to the lowest descender, in pixels.
        image_size: side of an image, in pixels.
        seed: of colours and distances.
    """
    random = np.random.default_rng(seed)
    lines = max(1, image_size // ceil(1.5 * height))
    pages, boxes = [], []
    for first in range(0, len(words), lines):
        paper, ink = _colours(random)
        page = Image.new("RGB", (image_size, image_size), paper)
        pen = ImageDraw.Draw(page)
        for line, word in enumerate(words[first : first + lines]):
            width = word.width(height)
            left = int(random.integers(image_size - width + 1))
            top = (2 * line + 1) * image_size // (2 * lines) - height // 2
            pen.text((left + _margin(height), top), word.text, ink, _font(word.font, height))
            boxes.append(Box(len(pages), left, top, width, height))
        pages.append(page)
    return Placed(_batch(pages), boxes)


@cache
def _font(name: str, height: float) -> ImageFont.FreeTypeFont:
    """A font whose lines are so many pixels high; set without libraqm, which not every Pillow has."""
    import matplotlib

    path, basic = Path(matplotlib.get_data_path(), "fonts", "ttf", f"{name}.ttf"), ImageFont.Layout.BASIC
    line = sum(ImageFont.truetype(path, 1000, layout_engine=basic).getmetrics())
    return ImageFont.truetype(path, 1000 * height / line, layout_engine=basic)


def _margin(height: int) -> int:
    return max(1, height // 4)


def _colours(random: np.random.Generator) -> tuple[tuple[int, ...], tuple[int, ...]]:
    while True:
        paper, ink = random.integers(256, size=(2, 3))
        if abs((paper - ink) @ LUMINANCE) >= CONTRAST:
            return tuple(paper.tolist()), tuple(ink.tolist())


def faces_in(folder: Path | None) -> list[Image.Image]:
    """The images of a folder; without one the 100 grey faces of 25 pixels inside scikit-image (a part of LFW).

    Raises:
        MissingFileError: if there is no such folder, or no image in it.
        UserError: if an image cannot be read.
    """
    if folder is None:
        from skimage.data import lfw_subset

        levels = (lfw_subset()[:100] * 255).round().astype(np.uint8)  # the others show no faces
        return [Image.fromarray(one).convert("RGB") for one in levels]
    return [read_image(folder / name) for name in list_images(folder).images]


def read_image(path: Path) -> Image.Image:
    """Read a file as an RGB image.

    Raises:
        UserError: if it cannot be read.
    """
    try:
        return to_rgb(open_image(path))
    except UNREADABLE as error:
        raise UserError(f"{path} cannot be read as an image: {error}") from error


def place_faces(faces: Sequence[Image.Image], side: int, image_size: int) -> Placed:
    """Tile images with the centre squares of faces, resized bicubically to this side in pixels."""
    across = image_size // side
    pages, boxes = [], []
    for first in range(0, len(faces), across**2):
        page = Image.new("RGB", (image_size, image_size), GREY)
        for cell, face in enumerate(faces[first : first + across**2]):
            left, top = cell % across * side, cell // across * side
            page.paste(ImageOps.fit(face, (side, side), Image.Resampling.BICUBIC), (left, top))
            boxes.append(Box(len(pages), left, top, side, side))
        pages.append(page)
    return Placed(_batch(pages), boxes)


def _batch(pages: Sequence[Image.Image]) -> Tensor:
    return torch.from_numpy(np.stack([np.asarray(page) for page in pages])).permute(0, 3, 1, 2)
