"""Data module of reference images and classes, for conditional sampling."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datamodules.labels import Batch, LabelDataModule
from datamodules.sources.base import ImageRecords, ImageSource
from datamodules.sources.folder import FolderRecords
from datamodules.sources.listing import list_images, warn_of_others
from datamodules.transforms import EvaluationTransform
from polytoken.errors import UserError
from polytoken.images import UNREADABLE


class ReferenceDataModule(LabelDataModule):
    """Batches of `label` (B,), `index` (B,) int64 and `image` float32 (B, 3, H, W) in [-1, 1], the reference.

    Every reference is combined with every class: image i has reference i // C and class i modulo C of the C classes.

    Args:
        image_size: Height and width of the references, in pixels; they are centre crops, as for validation.
        classes: The classes by number or by name, in the order of the grid's columns.
        folder: Folder of the reference images, in the order of their names, those of folders below it included; None
            takes those of `source`.
        source: A data set.
        indices: Indices of references among the validation images of `source`.
        batch_size: Images at a time on each device.
        part_size: Images saved together.

    Raises:
        MissingFileError: The folder does not exist or holds no images.
        UserError: There are no references, or they have no pixels.
    """

    def __init__(
        self,
        image_size: int,
        classes: list[str | int],  # str first, as in LabelDataModule
        folder: str | None = None,
        source: ImageSource | None = None,
        indices: Sequence[int] = (),
        batch_size: int = 32,
        part_size: int = 256,
    ) -> None:
        if folder is None and (source is None or not indices):
            raise UserError(
                "there are no reference images: set data.folder to a folder of images, or "
                "data.indices to some validation images of data.source"
            )
        self.image_size = image_size
        self._transform = EvaluationTransform(image_size)
        self.folder, self.source = folder, source
        self.indices = list(indices) if folder is None else list(range(len(self.records)))
        super().__init__(len(self.indices) * max(1, len(classes)), classes, batch_size, part_size)

    @cached_property
    def records(self) -> ImageRecords:
        """The images that `indices` count."""
        if self.folder is not None:
            listing = list_images(Path(self.folder))
            warn_of_others(Path(self.folder), [listing])
            return FolderRecords([self.folder], [0], [listing.images])
        assert self.source is not None
        return self.source.split("validation")

    @cached_property
    def references(self) -> Tensor:
        """The references, float32 (R, 3, H, W) in [-1, 1].

        Raises:
            UserError: An image cannot be read, or does not exist.
        """
        return torch.stack([self._read(index) for index in self.indices])

    def settings(self) -> dict[str, Any]:
        """Return the settings that determine references and labels, as plain data."""
        names = [self.records.describe(index) for index in self.indices]
        digest = hashlib.sha256(self.references.numpy().tobytes()).hexdigest()
        return {**super().settings(), "references": names, "references_sha256": digest}

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Add the references."""
        return {**batch, "image": self.references[batch["index"] // len(self.classes)]}

    def _read(self, index: int) -> Tensor:
        if not 0 <= index < len(self.records):
            raise UserError(
                f"data.indices names the validation image {index}, and there are {len(self.records)}, counted from 0"
            )
        try:
            return self._transform(self.records.load(index))
        except UNREADABLE as error:
            raise UserError(f"the reference {self.records.describe(index)} cannot be read: {error}") from error
