"""Data module of images with captions."""

from __future__ import annotations

from typing import Any

from datamodules.images import ImageDataModule
from datamodules.sources.captions import CaptionedRecords, CaptionedSource


class CaptionDataModule(ImageDataModule):
    """Batches of `ImageDataModule` with `captions`, the B lists of texts of the images.

    Training crops span the shorter side and are not mirrored, so that captions stay true.

    Args:
        source: The data set.
        image_size: Height and width of the images, in pixels.
        batch_size: Training images a step on each device.
        validation_batch_size: The same for evaluation; `batch_size` if None.
        num_workers: Worker processes of each device; 0 reads in the training process.
        seed: Seed of the order, not negative.
        max_bad_fraction: Stop the run when a rank has met more unreadable images than this fraction of a split, or,
            where the ranks divide one pass over the split, of its share.
    """

    def __init__(
        self,
        source: CaptionedSource,
        image_size: int = 256,
        batch_size: int = 32,
        validation_batch_size: int | None = None,
        num_workers: int = 8,
        seed: int = 0,
        max_bad_fraction: float = 0.01,
    ) -> None:
        super().__init__(
            source,
            image_size,
            batch_size,
            validation_batch_size,
            num_workers,
            crop_fraction=(1.0, 1.0),
            horizontal_flip=False,
            seed=seed,
            max_bad_fraction=max_bad_fraction,
        )

    def records(self, training: bool) -> CaptionedRecords:
        """Return the images and captions of the training or the validation split."""
        records = self.dataset("train" if training else "validation").records
        assert isinstance(records, CaptionedRecords)
        return records

    def on_before_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Add the captions; a row that pads the last batch repeats those of the first image."""
        batch = super().on_before_batch_transfer(batch, dataloader_idx)
        records = self.records(self.trainer is not None and self.trainer.training)
        return {**batch, "captions": [list(records.captions(max(index, 0))) for index in batch["index"].tolist()]}
