"""Image files, and conversion between 8 bits and [-1, 1]."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor, uint8

from polytoken.files import replacing

# Pillow chooses a decoder by content, whatever the file is called, and its decoder of PostScript starts Ghostscript:
# formats are named here, and no other is tried. JPEG includes the multi-picture files of cameras.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")


def open_image(source: str | Path | bytes) -> Image.Image:
    """Decode a file, or its bytes, in whatever mode it is stored.

    Raises:
        OSError: there is no such file, it is damaged, or its format is not one of `FORMATS`. Damaged files can raise
            other classes as well, which `datamodules.sources.base.UNREADABLE` lists.
    """
    with Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
        image.load()
    return image


def save_png(path: str | Path, pixels: np.ndarray) -> None:
    """Write uint8 (H, W, 3) as a PNG file, atomically."""
    with replacing(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")


def to_uint8(images: Tensor) -> Tensor:
    """Images in [-1, 1] to 0 … 255, rounded half up and clamped; same shape."""
    return (images.float() * 127.5 + 128).clamp(0, 255).to(uint8)


def from_uint8(images: Tensor) -> Tensor:
    """Images in 0 … 255 to float32 in [-1, 1]; same shape."""
    return images.float() / 127.5 - 1
