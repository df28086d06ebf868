"""Data module of images: batches as dicts, an order that resumes exactly, and a limit on unreadable files."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from torch.utils.data import DataLoader, Sampler

from datamodules.dataset import Example, ImageDataset, UnreadableImage, collate
from datamodules.order import Draw, EvaluationOrder, ListedOrder
from datamodules.resumable import ResumableDataModule
from datamodules.sources.base import SPLITS, ImageSource, Split
from datamodules.transforms import EvaluationTransform, TrainingTransform
from datamodules.views import Views, ViewsTransform
from polytoken.errors import RunError, UserError
from polytoken.ranges import at_least, within

log = logging.getLogger(__name__)


class ImageDataModule(ResumableDataModule):
    """Batches of `image` float32 (B, 3, H, W) in [-1, 1], `label` (B,) int64 and `index` (B,) int64.

    Order and augmentation are functions of `seed` and the number of earlier batches; the number of ranks and workers
    does not matter, and any checkpoint continues with the next batch. The order divides the images among the ranks, so
    use `Trainer(use_distributed_sampler=False)`. Testing and prediction read the validation split in order; rows with a
    negative `index` pad the last batch on several devices and must be dropped.

    With `views`, prediction reads both splits, training as dataloader 0 and validation as dataloader 1, with `image`
    (B, V, 3, H, W): the views of a training image, and one centre crop of a validation image.

    Args:
        source: The data set.
        image_size: Height and width of the images, in pixels.
        batch_size: Training images a step on each device.
        validation_batch_size: The same for evaluation and prediction; `batch_size` if None.
        num_workers: Worker processes of each device; 0 reads in the training process.
        crop_fraction: Smallest and largest fraction of the shorter side in a training crop.
        horizontal_flip: Mirror half of the training crops.
        seed: Seed of order and augmentation, not negative.
        max_bad_fraction: Stop the run when a rank has met more unreadable images than this fraction of a split, or,
            where the ranks divide one pass over the split, of its share.
        views: Crops of a training image that prediction reads; None predicts the validation images.
        draft: Decode the JPEGs of training at the smallest of 1, 1/2, 1/4 and 1/8 of their size that has the pixels of
            a crop. Faster where images are large, and the pixels differ (docs/data.md). Evaluation and prediction
            decode all pixels.
    """

    def __init__(
        self,
        source: ImageSource,
        image_size: int = 256,
        batch_size: int = 32,
        validation_batch_size: int | None = None,
        num_workers: int = 8,
        crop_fraction: tuple[float, float] = (0.8, 1.0),
        horizontal_flip: bool = True,
        seed: int = 0,
        max_bad_fraction: float = 0.01,
        views: Views | None = None,
        draft: bool = False,
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        within(0, 1, self, max_bad_fraction=max_bad_fraction)
        self.source = source
        self.image_size = image_size
        at_least(1, self, validation_batch_size=validation_batch_size)
        self.validation_batch_size = validation_batch_size or batch_size
        self.max_bad_fraction = max_bad_fraction
        self.views = views
        self.draft = draft
        self.training_transform = TrainingTransform(image_size, crop_fraction, horizontal_flip)
        self.evaluation_transform = EvaluationTransform(image_size)
        self._datasets: dict[Split, ImageDataset] = {}
        self._unreadable: dict[Split, set[int]] = {"train": set(), "validation": set()}
        self._predicted: Mapping[Split, Sequence[int]] | None = None

    @property
    def class_to_idx(self) -> dict[str, int]:
        """Class numbers of the source, by name."""
        return self.source.class_to_idx

    def dataset(self, split: Split) -> ImageDataset:
        """Return a split as a map from draws (epoch, index) to examples; the first call lists the files."""
        if split not in self._datasets:
            training = split == "train"
            self._datasets[split] = ImageDataset(
                self.source.split(split),
                self.training_transform if training else self.evaluation_transform,
                split,
                self.seed,
                replace_unreadable=training,
                shorter_side=self.training_transform.largest_side if training and self.draft else None,
            )
        return self._datasets[split]

    def prepare_data(self) -> None:
        """Prepare the source in one process of each node; the others wait."""
        self.source.prepare()

    def setup(self, stage: str) -> None:
        """List the splits now, so that a wrong path fails before the model is built."""
        super().setup(stage)
        if stage == "fit" or (stage == "predict" and self.views is not None):
            self.dataset("train")
        self.dataset("validation")

    def train_dataloader(self) -> DataLoader[Example]:
        """Return this rank's training batches, from the current position of the run."""
        return self._loader(self.dataset("train"), self._training_order(), self.batch_size, collate)

    def val_dataloader(self) -> DataLoader[Example]:
        """Return this rank's part of the validation split, in order."""
        dataset = self.dataset("validation")
        order = EvaluationOrder(len(dataset), *self._ranks())
        return self._loader(dataset, order, self.validation_batch_size, collate)

    def test_dataloader(self) -> DataLoader[Example]:
        """Return the same batches as validation."""
        return self.val_dataloader()

    def predict_dataloader(self) -> DataLoader[Example] | list[DataLoader[Example]]:
        """Return the same batches as validation; with `views`, those of the training and of the validation split."""
        if self.views is None:
            return self.val_dataloader()
        return [
            self._loader(self.views_dataset(split), self._prediction_order(split), self.validation_batch_size, collate)
            for split in SPLITS
        ]

    def _training_length(self) -> int:
        return len(self.dataset("train"))

    def identity(self) -> dict[str, Any]:
        """Return the source, its images by digest, and the settings of the transform of training."""
        source = type(self.source)
        return {
            **super().identity(),
            "source.class_path": f"{source.__module__}.{source.__qualname__}",
            "source": f"{self._training_length()} images (digest {self._digest[:12]})",
            "image_size": self.image_size,
            "crop_fraction": [*self.training_transform.crop_fraction],
            "horizontal_flip": self.training_transform.horizontal_flip,
            "draft": self.draft,
        }

    @cached_property
    def _digest(self) -> str:
        return self.dataset("train").records.digest()

    # -- views for prediction ------------------------------------------------------------------------------------------

    def predict_only(self, images: Mapping[Split, Sequence[int]]) -> None:
        """Restrict prediction with `views` on this rank to these images of each split, in this order."""
        self._predicted = images

    def split_views(self, split: Split) -> Views:
        """Return the crops of an image of a split that prediction reads.

        Raises:
            UserError: `views` is not set.
        """
        if self.views is None:
            raise UserError("data.views is not set: name the crops of an image (crops, flip).")
        return self.views if split == "train" else Views()

    def views_dataset(self, split: Split) -> ImageDataset:
        """Return a split as examples with `image` (V, 3, H, W); unreadable images are left out."""
        transform = ViewsTransform(self.image_size, self.split_views(split))
        return ImageDataset(self.dataset(split).records, transform, split, self.seed, replace_unreadable=False)

    def _prediction_order(self, split: Split) -> Sampler[Draw]:
        if self._predicted is None:
            return EvaluationOrder(len(self.dataset(split)), *self._ranks())
        return ListedOrder(self._predicted[split])

    # -- unreadable images ---------------------------------------------------------------------------------------------

    def on_before_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Record the skipped images of a batch, and return exactly `image`, `label` and `index`."""
        return self.count_unreadable(batch)

    def count_unreadable(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Log and count the skipped images of a batch, and return it without them.

        Raises:
            RunError: More than `max_bad_fraction` of a split cannot be read.
        """
        for bad in batch.pop("skipped", ()):
            self._note_unreadable(bad)
        return batch

    def _note_unreadable(self, bad: UnreadableImage) -> None:
        known = self._unreadable[bad.split]
        if bad.index in known:
            return
        known.add(bad.index)
        rank, ranks = self._ranks()
        log.warning("rank %d skips an unreadable %s image: %s (%s)", rank, bad.split, bad.place, bad.reason)
        length = len(self.dataset(bad.split))
        allowed = self.max_bad_fraction * length
        if self.trainer is not None and self.trainer.state.fn == "fit" and bad.split == "train":
            ranks = 1  # in the course of the epochs, a rank meets all images
        share = f"{length} {bad.split} images"
        if ranks > 1:
            share = f"about {-(-length // ranks)} {bad.split} images that rank {rank} reads"
        if len(known) > max(allowed / ranks, min(1, allowed)):  # a single image says nothing about a small share
            raise RunError(
                f"{len(known)} of {share} cannot be read, more than "
                f"data.max_bad_fraction={self.max_bad_fraction} allows, the last being {bad.place} ({bad.reason}): "
                "repair the data set or raise the limit."
            )


def check_image_size(data: object, size: int, holder: str) -> None:
    """Raise UserError unless a data module of images has those of a size.

    Args:
        data: any data module; one without images passes.
        size: pixels a side that are needed.
        holder: the setting that says so, for the message.
    """
    given = getattr(data, "image_size", size)
    if given != size:
        raise UserError(
            f"data.image_size is {given}, and {holder} is {size}: set data.image_size to {size}, or name another model"
        )
