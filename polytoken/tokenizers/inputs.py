"""Checks of images and codes that callers hand to a tokenizer; none of them waits for a device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from polytoken.errors import UserError
from polytoken.precision import autocasts

# Reconstructions are not clamped and noise has long tails, but nothing in [-1, 1] comes near it. Images in 0 … 255 do.
FARTHEST = 10.0


_trusted: ContextVar[bool] = ContextVar("trusted", default=False)


@contextmanager
def trusted() -> Iterator[None]:
    """Read no values inside the block: for a training step, whose data were checked when they were loaded."""
    token = _trusted.set(True)
    try:
        yield
    finally:
        _trusted.reset(token)


def check_images(images: Tensor, weight: Tensor, training: bool) -> None:
    """Raise UserError unless images are (B, 3, H, W) of the weights' type and, on a CPU, about in [-1, 1].

    Args:
        images: to be encoded.
        weight: of the tokenizer; under autocast any of its types will do.
        training: True leaves values to the guard of the training step.
    """
    if not images.is_floating_point():
        raise UserError(f"images are {images.dtype}: scale them to float32 in [-1, 1] (polytoken.images.from_uint8)")
    if images.ndim != 4 or images.shape[1] != 3:
        remedy = "add a batch dimension, images[None]" if images.ndim == 3 else "repeat grey images over 3 channels"
        raise UserError(f"images have shape {_shape(images)}, and a tokenizer reads batches (B, 3, H, W): {remedy}")
    mixed = (torch.float32, torch.float16, torch.bfloat16) if autocasts(images.device) else ()
    if images.dtype not in (weight.dtype, *mixed):
        raise UserError(
            f"images are {images.dtype}, and the tokenizer's weights {weight.dtype}: convert the images, "
            f"images.to({weight.dtype})"
        )
    if not training and _readable(images) and not bool((images.abs() <= FARTHEST).all()):  # NaN is not either
        low, high = float(images.min()), float(images.max())
        raise UserError(
            f"images range from {low:g} to {high:g}, and a tokenizer reads [-1, 1]: scale them, as by x / 127.5 - 1"
        )


def check_codes(codes: Tensor, sizes: Sequence[int], scales: Sequence[tuple[int, int]], remedy: str = "") -> None:
    """Raise UserError unless codes are integers (B, k, N) and, on a CPU, entries of the codebooks.

    Args:
        codes: to be embedded.
        sizes: K_1 … K_k.
        scales: grids whose positions are the N.
        remedy: of another N, which ends the sentence.
    """
    positions = sum(height * width for height, width in scales)
    if codes.dtype not in (torch.int64, torch.int32):
        raise UserError(f"codes are {codes.dtype}: they must be int64")
    if codes.ndim != 3 or codes.shape[1:] != (len(sizes), positions):
        raise UserError(
            f"codes have shape {_shape(codes)}, and this tokenizer reads (B, {len(sizes)}, {positions}): sub-codes and "
            f"positions of an image{remedy}"
        )
    if not _readable(codes):
        return
    for index, (size, row) in enumerate(zip(sizes, codes.unbind(1), strict=True)):
        if row.numel() and not 0 <= int(row.min()) <= int(row.max()) < size:
            raise UserError(
                f"sub-code {index} ranges from {int(row.min())} to {int(row.max())}, and its codebook has the entries "
                f"0 to {size - 1}"
            )


def _readable(tensor: Tensor) -> bool:
    """True where reading values costs no wait for a device and breaks no compiled graph."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling() and not _trusted.get()


def _shape(tensor: Tensor) -> str:
    return " × ".join(map(str, tensor.shape)) or "()"
