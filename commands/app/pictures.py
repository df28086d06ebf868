"""Images as the page shows them."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from html import escape
from io import BytesIO

import numpy as np
from PIL import Image
from torch import Tensor

from polytoken.images import to_uint8

SIDE = 320  # pixels, at least: smaller images are enlarged by whole factors, so that their pixels stay visible
SMALL = 128  # the same in rows of pictures
FRAME = np.array([255, 102, 0], dtype=np.uint8)


def pixels(image: Tensor, side: int = SIDE) -> np.ndarray:
    """An image (1, 3, H, W) or (3, H, W) in [-1, 1] as uint8 (H', W', 3), of at least ``side`` pixels."""
    return enlarged(to_uint8(image.detach().cpu()).reshape(image.shape[-3:]).permute(1, 2, 0).numpy(), side)


def enlarged(image: np.ndarray, side: int = SIDE) -> np.ndarray:
    """Pixels (H, W, 3) repeated by the smallest whole factor that gives at least ``side`` pixels."""
    factor = -(-side // image.shape[0])
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def framed(image: np.ndarray, box: tuple[int, int, int, int], size: int) -> np.ndarray:
    """Pixels with a frame around a box (top, bottom, left, right), which counts in an image of ``size`` pixels."""
    factor = image.shape[0] // size
    top, bottom, left, right = (edge * factor for edge in box)
    width = max(1, image.shape[0] // 100)
    marked = image.copy()
    marked[top:bottom, left:right] = FRAME
    inner = slice(top + width, bottom - width), slice(left + width, right - width)
    marked[inner] = image[inner]
    return marked


def data_url(image: np.ndarray) -> str:
    """Pixels (H, W, 3) as the URL of a PNG."""
    file = BytesIO()
    Image.fromarray(image).save(file, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def figures(pictures: Iterable[tuple[np.ndarray, str]], alt: str) -> str:
    """HTML of pictures with captions, as many in a row as fit."""
    shown = "".join(
        f'<figure><img src="{data_url(image)}" alt="{escape(alt)}"><figcaption>{escape(caption)}</figcaption></figure>'
        for image, caption in pictures
    )
    return f'<div class="figures">{shown}</div>'
