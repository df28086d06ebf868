"""Images for the Trainer: batches as dicts, an order that resumes exactly, and a limit on unreadable files."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils.data import DataLoader, Sampler

from datamodules.dataset import Example, ImageDataset, UnreadableImage, collate
from datamodules.order import Draw, EvaluationOrder, ListedOrder
from datamodules.resumable import ResumableDataModule
from datamodules.sources.base import SPLITS, ImageSource, Split
from datamodules.transforms import EvaluationTransform, TrainingTransform
from datamodules.views import Views, ViewsTransform
from polytoken.errors import RunError, UserError

log = logging.getLogger(__name__)


class ImageDataModule(ResumableDataModule):
    """Batches of `image` float32 (B, 3, H, W) in [-1, 1], `label` (B,) int64 and `index` (B,) int64.

    Order and augmentation are functions of `seed` and of the number of batches before, whatever the number of ranks
    and workers, and a checkpoint taken anywhere continues with the next batch. Use with
    `Trainer(use_distributed_sampler=False)`: the order knows the ranks itself. Testing and prediction read the
    validation split in order; on several devices drop the rows whose `index` is negative (they pad the last batch).

    With `views`, prediction reads both splits, training as dataloader 0 and validation as dataloader 1, with `image`
    (B, V, 3, H, W): the views of a training image, and the one centre crop of a validation image.

    Args:
        source: The data set.
        image_size: Height and width of the images, in pixels.
        batch_size: Training images a step on each device.
        validation_batch_size: The same for evaluation and prediction; `batch_size` if None.
        num_workers: Processes that read images, on each device; 0 reads in the training process.
        crop_fraction: Least and greatest part of the shorter side that a training crop shows.
        horizontal_flip: Whether half of the training crops are mirrored.
        seed: Seed of order and augmentation, not negative.
        max_bad_fraction: The run stops when a rank has met more unreadable images than this part of a split.
        views: The crops of a training image that prediction reads; None predicts the validation images.
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
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        if not 0 <= max_bad_fraction <= 1:
            raise UserError(f"data.max_bad_fraction={max_bad_fraction}: expected a fraction between 0 and 1.")
        self.source = source
        self.image_size = image_size
        self.validation_batch_size = validation_batch_size or batch_size
        self.max_bad_fraction = max_bad_fraction
        self.views = views
        self.training_transform = TrainingTransform(image_size, crop_fraction, horizontal_flip)
        self.evaluation_transform = EvaluationTransform(image_size)
        self._datasets: dict[Split, ImageDataset] = {}
        self._unreadable: dict[Split, set[int]] = {"train": set(), "validation": set()}
        self._predicted: Mapping[Split, Sequence[int]] | None = None

    @property
    def class_to_idx(self) -> dict[str, int]:
        """The source's numbering of its classes."""
        return self.source.class_to_idx

    def dataset(self, split: Split) -> ImageDataset:
        """Return a split as a map from draws (epoch, index) to examples; it is listed on first use."""
        if split not in self._datasets:
            training = split == "train"
            self._datasets[split] = ImageDataset(
                self.source.split(split),
                self.training_transform if training else self.evaluation_transform,
                split,
                self.seed,
                replace_unreadable=training,
            )
        return self._datasets[split]

    def setup(self, stage: str) -> None:
        """List the splits of the stage, so that a wrong path fails before the model is built."""
        super().setup(stage)
        if stage == "fit" or (stage == "predict" and self.views is not None):
            self.dataset("train")
        self.dataset("validation")

    def train_dataloader(self) -> "DataLoader[Example]":
        """Return this rank's training batches, from where the run stands."""
        return self._loader(self.dataset("train"), self._training_order(), self.batch_size, collate)

    def val_dataloader(self) -> "DataLoader[Example]":
        """Return this rank's part of the validation split, in order."""
        dataset = self.dataset("validation")
        order = EvaluationOrder(len(dataset), *self._ranks())
        return self._loader(dataset, order, self.validation_batch_size, collate)

    def test_dataloader(self) -> "DataLoader[Example]":
        """Return the same batches as validation."""
        return self.val_dataloader()

    def predict_dataloader(self) -> "DataLoader[Example] | list[DataLoader[Example]]":
        """Return the same batches as validation; with `views`, those of the training and of the validation split."""
        if self.views is None:
            return self.val_dataloader()
        return [
            self._loader(self.views_dataset(split), self._prediction_order(split), self.validation_batch_size, collate)
            for split in SPLITS
        ]

    def _training_length(self) -> int:
        return len(self.dataset("train"))

    # -- views for prediction ------------------------------------------------------------------------------------------

    def predict_only(self, images: Mapping[Split, Sequence[int]]) -> None:
        """Let prediction with `views` read these images of each split on this rank, in this order, and no others."""
        self._predicted = images

    def split_views(self, split: Split) -> Views:
        """Return which crops prediction reads of an image of a split.

        Raises:
            ValueError: This data module was given no views.
        """
        if self.views is None:
            raise UserError("data.init_args.views is not set: say which crops of an image to read (crops, flip).")
        return self.views if split == "train" else Views()

    def views_dataset(self, split: Split) -> ImageDataset:
        """Return a split as examples of which `image` is (V, 3, H, W); an image that cannot be read is left out."""
        transform = ViewsTransform(self.image_size, self.split_views(split))
        return ImageDataset(self.dataset(split).records, transform, split, self.seed, replace_unreadable=False)

    def _prediction_order(self, split: Split) -> Sampler[Draw]:
        if self._predicted is None:
            return EvaluationOrder(len(self.dataset(split)), *self._ranks())
        return ListedOrder(self._predicted[split])

    # -- images that cannot be read ------------------------------------------------------------------------------------

    def on_before_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Take note of the images that a batch had to skip, and hand on exactly `image`, `label` and `index`."""
        for bad in batch.pop("skipped", ()):
            self._note_unreadable(bad)
        return batch

    def _note_unreadable(self, bad: UnreadableImage) -> None:
        known = self._unreadable[bad.split]
        if bad.index in known:
            return
        known.add(bad.index)
        rank, _ = self._ranks()
        log.warning("rank %d skips an unreadable %s image: %s (%s)", rank, bad.split, bad.place, bad.reason)
        length = len(self.dataset(bad.split))
        if len(known) > self.max_bad_fraction * length:
            raise RunError(
                f"{len(known)} of the {length} {bad.split} images cannot be read, more than "
                f"data.max_bad_fraction={self.max_bad_fraction} allows, the last being {bad.place} ({bad.reason}): "
                "repair the data set or raise the limit."
            )
