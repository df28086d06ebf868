"""Image files, and conversion between 8 bits and [-1, 1]."""

from __future__ import annotations

import os
import struct
import zlib
from io import BytesIO
from pathlib import Path
from stat import S_ISREG

import numpy as np
import torch
from PIL import Image
from torch import Tensor, uint8
from torch.nn import functional

from polytoken.errors import MissingFileError, UserError
from polytoken.files import replacing

# Pillow chooses a decoder by content, not by file name, and its decoder of PostScript starts Ghostscript:
# only the formats named here are tried. JPEG includes the multi-picture files of cameras.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
# An image is scaled by its shorter side before it is cropped, so that thin ones would cost memory without a bound.
MAX_ASPECT = 64

# raised by Pillow on truncated, damaged, missing, foreign or absurdly large files (179 million pixels and more), and by
# `open_image`; anything else is a fault of the code
UNREADABLE = (OSError, EOFError, SyntaxError, ValueError, struct.error, zlib.error, Image.DecompressionBombError)


def open_image(source: str | Path | bytes, shorter_side: int | None = None) -> Image.Image:
    """Decode a file, or its bytes, in its stored mode.

    Size and aspect are checked by the header, before pixels take memory.

    Args:
        source: the path, or the content of the file.
        shorter_side: decode a JPEG at the smallest of 1, 1/2, 1/4 and 1/8 of its size whose shorter side has this many
            pixels (libjpeg scales the blocks of its DCT); None decodes all pixels, as other formats always do.

    Raises:
        OSError: there is no such file, it is no regular file, it is damaged, or its format is not one of `FORMATS`.
            Damaged and absurdly large files can raise the other classes of `UNREADABLE`.
        UserError: one side is more than `MAX_ASPECT` times the other.
    """
    if not isinstance(source, bytes) and not S_ISREG(os.stat(source).st_mode):
        raise OSError(f"{source} is no regular file")  # opening a pipe would wait for ever
    with Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
        if max(image.size) > MAX_ASPECT * min(image.size):
            width, height = image.size
            raise UserError(f"{width} × {height} pixels: one side is more than {MAX_ASPECT} times the other")
        if shorter_side is not None:
            image.draft(None, (shorter_side, shorter_side))
        image.load()
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """Turn any stored mode into 8-bit RGB.

    Transparency (RGBA, LA, PA, a palette with a transparent entry) is laid over white. Sixteen-bit greyscale is scaled
    from 0 .. 65535 and floating point from 0 .. 1, where Pillow's own conversion would clip to 255.

    Raises:
        UserError: The values leave that range, or Pillow cannot convert the mode.
    """
    if image.mode == "RGB":
        return image
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _from_range(image, 65535)
    if image.mode == "F":
        return _from_range(image, 1)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _from_range(image: Image.Image, white: int) -> Image.Image:
    values = np.asarray(image).astype(np.float64)
    if not (values.min() >= 0 and values.max() <= white):  # also false for NaN
        raise UserError(
            f"image mode {image.mode} with values {values.min():g} .. {values.max():g}: expected 0 .. {white}"
        )
    return Image.fromarray(np.rint(values * (255 / white)).astype(np.uint8)).convert("RGB")


def resize_short_side(image: Image.Image, target: int) -> Image.Image:
    """Scale so that the shorter side is `target`: BOX halvings while it is at least twice that, then BICUBIC."""
    while min(image.size) >= 2 * target:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = target / min(image.size)
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)


def centre_square(image: Image.Image, side: int) -> np.ndarray:
    """ADM's centre crop as uint8 (side, side, 3): the shorter side becomes `side`, and the middle is kept."""
    pixels = np.asarray(resize_short_side(to_rgb(image), side))
    top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
    return pixels[top : top + side, left : left + side]


def to_tensor(pixels: np.ndarray) -> Tensor:
    """Map uint8 (H, W, 3) to float32 (3, H, W): 0 … 255 becomes -1 … 1."""
    return from_uint8(torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))))


def save_png(path: str | Path, pixels: np.ndarray) -> None:
    """Write uint8 (H, W, 3) as a PNG file, atomically."""
    with replacing(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")


def read_image(path: str | Path, size: int) -> Tensor:
    """Read a file as (1, 3, size, size) float32 in [-1, 1], as evaluation and token stores read it.

    Every mode becomes RGB (:func:`to_rgb`), and the centre is cropped (:func:`centre_square`).

    Raises:
        MissingFileError: if there is no such file.
        UserError: if it is not an image of `FORMATS`, or too thin or too large.
    """
    if not Path(path).is_file():
        raise MissingFileError(f"there is no image {path}")
    try:
        square = centre_square(open_image(path), size)
    except UNREADABLE as error:
        raise UserError(f"{path} cannot be read as an image ({', '.join(FORMATS)}): {error}") from error
    return to_tensor(square).unsqueeze(0)


def write_image(image: Tensor, path: str | Path) -> None:
    """Write one image (1, 3, H, W) or (3, H, W) in [-1, 1] to a PNG file; values beyond are clamped.

    Raises:
        UserError: if it has another shape or no pixels, is not floating point or not finite, or the path does not end
            in ``.png``.
    """
    if Path(path).suffix.lower() != ".png":
        raise UserError(f"write_image writes PNG files: {path} must end in .png")
    one = image.ndim == 3 or (image.ndim == 4 and len(image) == 1)
    finite = bool(image.isfinite().all())
    if not (one and image.shape[-3] == 3 and image.numel() and image.is_floating_point() and finite):
        found = f"{image.dtype} {tuple(image.shape)}{'' if finite else ' with values that are not finite'}"
        raise UserError(
            f"write_image expects one image (3, H, W) or (1, 3, H, W) of finite floating-point numbers, got {found}: "
            "select one, images[0], or convert 8 bits by polytoken.images.from_uint8"
        )
    pixels = to_uint8(image.detach().cpu()).reshape(image.shape[-3:]).permute(1, 2, 0)
    save_png(path, pixels.contiguous().numpy())


def to_uint8(images: Tensor) -> Tensor:
    """Images in [-1, 1] to 0 … 255, rounded half up and clamped; same shape.

    Raises:
        UserError: if they are not floating point: 8 bits would turn white.
    """
    return _levels(images).to(uint8)


def _levels(images: Tensor) -> Tensor:
    """Images in [-1, 1] to whole float32 numbers in 0 … 255; NaN stays NaN."""
    if not images.is_floating_point():
        raise UserError(
            f"images in [-1, 1] are floating-point numbers, got {images.dtype}: convert 8 bits by "
            "polytoken.images.from_uint8"
        )
    return (images.float() * 127.5 + 128).clamp(0, 255).floor()


def resize_displayed(images: Tensor, size: int) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1], rounded to 8 bits as a file holds them and resized to squares of ``size`` pixels.

    Bicubic with antialiasing, float32. The result may leave [-1, 1]; rounding it again clamps it. What is not finite
    stays so, since in 8 bits it would pass for black.

    Raises:
        UserError: if they are not floating point.
    """
    return functional.interpolate(from_uint8(_levels(images)), (size, size), mode="bicubic", antialias=True)


def from_uint8(images: Tensor) -> Tensor:
    """Images in 0 … 255 to float32 in [-1, 1]; same shape."""
    return images.float() / 127.5 - 1
