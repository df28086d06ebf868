"""Views: the crops of an image that are tokenized. Ten crops as in LlamaGen's extraction, or the centre crop.

LlamaGen (arXiv 2406.06525) tokenizes ImageNet once, ten crops an image, and trains its generators on the stored codes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image

from polytoken.errors import UserError
from polytoken.images import centre_square, to_tensor

PLACES = ("centre", "top left", "top right", "bottom left", "bottom right")


class View(NamedTuple):
    """One crop: its place in the centre square of side int(size · enlargement), and mirrored or not."""

    place: str
    enlargement: float
    mirrored: bool

    @property
    def name(self) -> str:
        """Description for the manifest: `top left of 1.1, mirrored`."""
        return f"{self.place} of {self.enlargement:g}{', mirrored' if self.mirrored else ''}"


@dataclass(frozen=True)
class Views:
    """The crops of an image in a token store; view 0 is a centre crop, not mirrored.

    `centre` is the crop of evaluation. `ten_crop` cuts the four corners and the centre out of ADM's centre square of
    int(size · enlargement) pixels: 281 for 256 and 1.1. Without `flip` these are five crops. The mirrored crops are
    those of the mirrored square, and the centre begins at half the margin, rounded to even, as torchvision's TenCrop
    has it: with an odd margin the two centres are a column apart.

    Args:
        crops: The centre alone, or centre and corners.
        flip: Add the mirrored crops, after all others.
        enlargements: Sides of the squares that `ten_crop` cuts from, divided by `size`. FQGAN uses (1.1,), LlamaGen
            (1.1, 1.05).
    """

    crops: Literal["centre", "ten_crop"] = "centre"
    flip: bool = False
    enlargements: tuple[float, ...] = (1.1,)

    def __post_init__(self) -> None:
        if not self.enlargements or min(self.enlargements) < 1:
            raise UserError(f"views.enlargements={list(self.enlargements)}: expected numbers of at least 1.")

    def __iter__(self) -> Iterator[View]:
        ten = self.crops == "ten_crop"
        for mirrored in (False, True) if self.flip else (False,):
            for enlargement in self.enlargements if ten else (1.0,):
                for place in PLACES if ten else PLACES[:1]:
                    yield View(place, enlargement, mirrored)

    @property
    def names(self) -> tuple[str, ...]:
        """Descriptions of the views, in order."""
        return tuple(view.name for view in self)


@dataclass(frozen=True)
class ViewsTransform:
    """All views of an image, each `size` pixels a side."""

    size: int
    views: Views

    def __call__(self, image: Image.Image, generator: np.random.Generator | None = None) -> torch.Tensor:
        """Return float32 (V, 3, size, size) in [-1, 1]; deterministic, `generator` is not read."""
        enlargements = {view.enlargement for view in self.views}
        squares = {one: centre_square(image, int(self.size * one)) for one in enlargements}
        return torch.stack([to_tensor(self._crop(squares[view.enlargement], view)) for view in self.views])

    def _crop(self, square: np.ndarray, view: View) -> np.ndarray:
        rest = len(square) - self.size
        centre = view.place == "centre"
        top = round(rest / 2) if centre else rest * view.place.startswith("bottom")
        left = round(rest / 2) if centre else rest * (view.place.endswith("right") != view.mirrored)
        pixels = square[:, ::-1] if view.mirrored else square
        return pixels[top : top + self.size, left : left + self.size]
