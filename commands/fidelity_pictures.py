"""Pictures of `commands.fidelity`: words and faces before and after a tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from artifacts.display import printable
from callbacks.measure.plots import FONT_SIZE, image_table
from polytoken.images import save_png

SHOWN = 8  # words or faces of a size
WORD_CELL = (128, 32)  # width and height of a crop in the picture
FACE_CELL = (64, 64)


class ReadWord(NamedTuple):
    """A word, its crops uint8 (3, h, w), and what was read from them."""

    written: str
    original: Tensor
    read_original: str
    reconstruction: Tensor
    read: str


def draw_words(words: Mapping[int, Sequence[ReadWord]], path: Path) -> None:
    """Draw a row for each of the first words and two columns for each size, the crops above what was read from them.

    Args:
        words: by their height in pixels, at all sizes the same.
        path: of the picture.
    """
    rows = [
        [
            cell
            for word in line
            for cell in (_captioned(word.original, word.read_original), _captioned(word.reconstruction, word.read))
        ]
        for line in zip(*(of_size[:SHOWN] for of_size in words.values()), strict=True)
    ]
    labels = [word.written for word in next(iter(words.values()))[:SHOWN]]
    save_png(path, image_table(rows, labels, _titles(words), pixels=WORD_CELL[1]))


def draw_faces(faces: Mapping[int, Sequence[tuple[Tensor, Tensor]]], path: Path) -> None:
    """Draw a row of the first faces and a row of their reconstructions for each size, which is in pixels."""
    rows = [
        [_tensor(_image(face).resize(FACE_CELL)) for face in line]
        for of_size in faces.values()
        for line in zip(*of_size[:SHOWN], strict=True)
    ]
    save_png(path, image_table(rows, _titles(faces)))


def _titles(sizes: Mapping[int, object]) -> list[str]:
    return [title for size in sizes for title in (f"{size} px", "decoded")]


def _captioned(crop: Tensor, read: str) -> Tensor:
    """A crop (3, h, w) enlarged or reduced into a white cell, above what was read from it."""
    width, height = WORD_CELL
    cell = Image.new("RGB", (width, height + FONT_SIZE + 6), "white")
    cell.paste(ImageOps.contain(_image(crop), WORD_CELL), (0, 0))
    ImageDraw.Draw(cell).text((0, height + 1), printable(read) or "–", "black", ImageFont.load_default(FONT_SIZE))
    return _tensor(cell)


def _image(crop: Tensor) -> Image.Image:
    return Image.fromarray(crop.permute(1, 2, 0).numpy())


def _tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
