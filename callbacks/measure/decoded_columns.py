"""Several decodings of the same images, one a column of a picture."""

from __future__ import annotations

from collections.abc import Sequence

import lightning.pytorch as pl
import torch
from torch import Tensor
from torchmetrics import MeanMetric

from callbacks.measure.plots import image_table, publish
from polytoken.images import resize_displayed
from polytoken.metrics.gather import gather_rows
from polytoken.metrics.images import psnr, to_uint8

ORIGINAL = "original"


class DecodedColumns:
    """Mean PSNR of each decoding over the images of all ranks, and a picture: a row per image, the original first.

    Args:
        names: of the decodings, the same on every rank.
        rows: images in the picture.
        ranks: number of ranks.
        device: of the sums.
    """

    def __init__(self, names: Sequence[str], rows: int, ranks: int, device: torch.device) -> None:
        self._device = device
        self._rows = rows
        self._wanted = -(-rows // ranks)
        self._psnr = {name: MeanMetric().to(device) for name in names}
        self._shown: dict[str, list[Tensor]] = {name: [] for name in (ORIGINAL, *names)}

    def add(self, name: str, decoded: Tensor, images: Tensor) -> Tensor:
        """Add a batch of one column: images (B, 3, H, W) in [-1, 1] and what was decoded for them.

        Returns the decoded images as they are compared: uint8, and at the size of the images, which the module's
        ``metric_size`` may have made another one than the tokenizer's.
        """
        if decoded.shape != images.shape:
            decoded = resize_displayed(decoded, images.shape[-1])
        compared, shown = to_uint8(decoded), self._shown[name]
        shown.append(compared[: max(0, self._wanted - sum(map(len, shown)))].clone())  # a view would keep the batch
        if name in self._psnr:
            self._psnr[name].update(psnr(compared, to_uint8(images)))
        return compared

    def psnr(self) -> dict[str, Tensor]:
        """Mean PSNR in dB of each column; a collective that every rank calls."""
        return {name: metric.compute() for name, metric in self._psnr.items()}

    def gather(self) -> None:
        """Collect the pictures of all ranks; a collective that every rank calls before `publish`."""
        self._gathered = [gather_rows(images, self._device).cpu() for images in self._shown.values()]

    def publish(self, trainer: pl.Trainer, name: str, titles: Sequence[str], pixels: int) -> None:
        """Write ``<name>.png``, with a title for each column, the original's included."""
        rows = list(zip(*self._gathered, strict=True))[: self._rows]
        publish(trainer, name, image_table(rows, column_titles=titles, pixels=pixels))
