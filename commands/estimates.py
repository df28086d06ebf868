"""Estimates of time and disk of a curriculum from measured speeds (docs/results.md, «On a GPU»)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from artifacts.token_manifest import stored_shape, stored_type
from commands.processes import global_batch
from datamodules.views import Views
from polytoken.building import build
from polytoken.errors import UserError
from polytoken.quantizers import FactorizedQuantizer
from polytoken.text import duration
from polytoken.tokenizers import ConvolutionalTokenizer
from polytoken.tokenizers.base import Tokenizer

MACHINE = "one H200, 16 cores"
# images or positions a second, bf16: the only speeds that were measured, of these sizes
TOKENIZER_STEP = 72  # f16 dual tokenizer, 256 px, without perceptual term, discriminator and teacher
TOKENIZER_FORWARD = 221  # the same, encoder and decoder
UNKNOWN = "not measured"


@dataclass(frozen=True)
class Estimate:
    """Time and disk of one stage.

    Args:
        stage: its name.
        work: what it does, in words.
        seconds: on one device of MACHINE; None if no speed of such a stage was measured.
        size: bytes that it writes besides checkpoints; None if they are not known.
    """

    stage: str
    work: str
    seconds: float | None
    size: float | None

    def row(self, devices: int) -> tuple[str, str, str, str]:
        """Cells of a table, for a number of devices that share the work evenly."""
        time = UNKNOWN if self.seconds is None else f"{duration(self.seconds / devices)} at least"
        disk = "unknown" if self.size is None else f"{self.size / 1e9:,.1f} GB" if self.size else "checkpoints"
        return self.stage, self.work, time, disk


def estimates(
    tokenizer: dict[str, Any], tokens: dict[str, Any], generator: dict[str, Any], sample: dict[str, Any], images: int
) -> Iterator[Estimate]:
    """Estimates of the stages of a curriculum.

    Args:
        tokenizer: composed configuration of its training.
        tokens: that of the prediction of tokens.
        generator: that of the generator's training.
        sample: that of the prediction of samples.
        images: number of training images.
    """
    section = tokenizer["model"]["init_args"].get("tokenizer", {})
    coder = _built(section)
    measured = (
        isinstance(coder, ConvolutionalTokenizer)
        and (coder.image_size, coder.downsampling) == (256, 16)
        and isinstance(coder.quantizer, FactorizedQuantizer)
    )
    steps, batch = _steps(tokenizer)
    seen = steps * batch
    yield Estimate("tokenizer", f"{seen:,} images", seen / TOKENIZER_STEP if measured else None, 0)

    views = tokens["data"]["init_args"].get("views") or {}
    stored = images * len(Views(**views).names)
    written = None if coder is None else float(stored * _bytes_of_view(coder))
    yield Estimate("tokens", f"{stored:,} crops", stored / TOKENIZER_FORWARD if measured else None, written)

    steps, batch = _steps(generator)
    yield Estimate("generator", f"{steps:,} steps of {batch} images", None, 0)

    size = section.get("init_args", {}).get("image_size")
    drawn = sample["data"]["init_args"].get("num_images") or 0
    yield Estimate("sample", f"{drawn:,} images", None, drawn * size**2 * 3.0 if size else None)


def _built(section: dict[str, Any]) -> Tokenizer | None:
    """The tokenizer, without memory; None if it needs a file that is made first, or has a class of another package."""
    try:
        with torch.device("meta"):
            return build(section, Tokenizer, "model.tokenizer")
    except UserError:
        return None


def _bytes_of_view(tokenizer: Tokenizer) -> int:
    """Bytes of the codes or latents of a crop in a token store."""
    return math.prod(stored_shape(tokenizer.spec, tokenizer.latent_shape)) * stored_type(tokenizer.spec).itemsize


def _steps(config: dict[str, Any]) -> tuple[int, int]:
    """Steps of a training, and images of a step over all devices."""
    batch = global_batch(config)
    return max(config["trainer"]["max_steps"], 0), batch.rows if batch else 1
