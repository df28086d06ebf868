"""Images for the Trainer: batches as dicts, an order that resumes exactly, and a limit on unreadable files."""

import logging
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import DataLoader, Sampler

from datamodules.dataset import Example, ImageDataset, UnreadableImage, collate
from datamodules.order import Draw, EvaluationOrder, TrainingOrder
from datamodules.sources.base import ImageSource, Split
from datamodules.transforms import EvaluationTransform, TrainingTransform

log = logging.getLogger(__name__)


class ImageDataModule(LightningDataModule):
    """Batches of `image` float32 (B, 3, H, W) in [-1, 1], `label` (B,) int64 and `index` (B,) int64.

    Order and augmentation are functions of `seed` and of the number of batches before, whatever the number of ranks
    and workers, and a checkpoint taken anywhere continues with the next batch. Use with
    `Trainer(use_distributed_sampler=False)`: the order knows the ranks itself. Testing and prediction read the
    validation split in order; on several devices drop the rows whose `index` is negative (they pad the last batch).

    Args:
        source: The data set.
        image_size: Height and width of the images, in pixels.
        batch_size: Training images a step on each device.
        validation_batch_size: The same for evaluation; `batch_size` if None.
        num_workers: Processes that read images, on each device; 0 reads in the training process.
        crop_fraction: Least and greatest part of the shorter side that a training crop shows.
        horizontal_flip: Whether half of the training crops are mirrored.
        seed: Seed of order and augmentation, not negative.
        max_bad_fraction: The run stops when a rank has met more unreadable images than this part of a split.
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
    ) -> None:
        super().__init__()
        if seed < 0:
            raise ValueError(f"data.seed={seed}: expected a number that is not negative.")
        if not 0 <= max_bad_fraction <= 1:
            raise ValueError(f"data.max_bad_fraction={max_bad_fraction}: expected a fraction between 0 and 1.")
        self.source = source
        self.batch_size = batch_size
        self.validation_batch_size = validation_batch_size or batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.max_bad_fraction = max_bad_fraction
        self.training_transform = TrainingTransform(image_size, crop_fraction, horizontal_flip)
        self.evaluation_transform = EvaluationTransform(image_size)
        self._datasets: dict[Split, ImageDataset] = {}
        self._unreadable: dict[Split, set[int]] = {"train": set(), "validation": set()}
        # The stream stands at the Trainer's count of batches plus this offset; see `load_state_dict`.
        self._offset = 0
        self._restored_batches = 0

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
        if stage == "fit":
            self._offset = self._restored_batches = 0
            self.dataset("train")
        self.dataset("validation")

    def train_dataloader(self) -> "DataLoader[Example]":
        """Return this rank's training batches, from where the run stands."""
        return self._loader(self.dataset("train"), self._training_order(), self.batch_size)

    def val_dataloader(self) -> "DataLoader[Example]":
        """Return this rank's part of the validation split, in order."""
        dataset = self.dataset("validation")
        return self._loader(dataset, EvaluationOrder(len(dataset), *self._ranks()), self.validation_batch_size)

    def test_dataloader(self) -> "DataLoader[Example]":
        """Return the same batches as validation."""
        return self.val_dataloader()

    def predict_dataloader(self) -> "DataLoader[Example]":
        """Return the same batches as validation."""
        return self.val_dataloader()

    def _loader(self, dataset: ImageDataset, order: Sampler[Draw], batch_size: int) -> "DataLoader[Example]":
        return ResumableLoader(
            dataset,
            batch_size=batch_size,
            sampler=order,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            collate_fn=collate,
            pin_memory=torch.cuda.is_available(),
            # a loader draws a seed for its workers, by default from the global generator that the model uses as well
            generator=torch.Generator().manual_seed(self.seed),
        )

    def _training_order(self) -> TrainingOrder:
        return TrainingOrder(len(self.dataset("train")), self.batch_size, *self._ranks(), self.seed, self._position)

    def _ranks(self) -> tuple[int, int]:
        ranks = self.trainer.distributed_sampler_kwargs if self.trainer else None
        if not ranks or ranks["num_replicas"] == 1:
            return 0, 1
        if self.trainer._accelerator_connector.use_distributed_sampler:
            raise ValueError(
                "The Trainer would divide the images among the ranks a second time: set "
                "trainer.use_distributed_sampler=false."
            )
        return ranks["rank"], ranks["num_replicas"]

    # -- where the run stands ------------------------------------------------------------------------------------------

    def _position(self) -> int:
        # A configure_optimizers that asks for `estimated_stepping_batches` has the loader iterated before Lightning
        # restores its counter; the count in our own state is there by then.
        return self._offset + max(self._batches_trained(), self._restored_batches)

    def _batches_trained(self) -> int:
        # `processed` is right at every moment a checkpoint can be taken: it rises before on_train_batch_end, where
        # `completed` has not yet, and a batch that fails halfway is trained again, though `ready` counts it already.
        # The total counts on over epochs, so an epoch cut short by max_steps is resumed inside as well.
        return self.trainer.fit_loop.epoch_loop.batch_progress.total.processed if self.trainer else 0

    def state_dict(self) -> dict[str, Any]:
        """Return the place in the training stream, what that place depends on, and the numbering of the classes."""
        order = self._training_order()
        return {
            "batches_trained": self._batches_trained(),
            "offset": self._offset,
            "seed": self.seed,
            "global_batch_size": order.global_batch_size,
            "length": order.length,
            "class_to_idx": dict(self.class_to_idx),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue training where the checkpoint was taken.

        Raises:
            ValueError: The classes are numbered otherwise, or the checkpoint lies inside an epoch and the seed, the
                global batch size or the size of the split has changed since.
        """
        if self.trainer and self.trainer.state.fn != TrainerFn.FITTING:
            return  # a model may be evaluated on any data
        _check_same_classes(state_dict["class_to_idx"], self.class_to_idx)
        order = self._training_order()
        now = {"seed": self.seed, "global_batch_size": order.global_batch_size, "length": order.length}
        changed = [name for name, value in now.items() if value != state_dict[name]]
        self._restored_batches, self._offset = state_dict["batches_trained"], state_dict["offset"]
        if changed:
            per_epoch = state_dict["length"] // state_dict["global_batch_size"]
            epoch, batch = divmod(self._restored_batches + self._offset, per_epoch)
            if batch:
                differences = ", ".join(f"{name} was {state_dict[name]} and is {now[name]}" for name in changed)
                raise ValueError(
                    f"The checkpoint was taken after batch {batch} of {per_epoch} of epoch {epoch}, but {differences}: "
                    "resume with the values of the checkpoint, or from one taken at the end of an epoch."
                )
            self._offset = epoch * order.batches_per_epoch - self._restored_batches

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
            raise RuntimeError(
                f"{len(known)} of the {length} {bad.split} images cannot be read, more than "
                f"data.max_bad_fraction={self.max_bad_fraction} allows, the last being {bad.place} ({bad.reason}): "
                "repair the data set or raise the limit."
            )


class ResumableLoader(DataLoader[Example]):
    """A DataLoader that tells Lightning it resumes mid-epoch: its order asks the data module where the run stands."""

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: the data module's state says it all, and Lightning sometimes drops a loader's state."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Do nothing: see `state_dict`."""


def _check_same_classes(saved: dict[str, int], current: dict[str, int]) -> None:
    for name in sorted(saved.keys() | current.keys()):
        if saved.get(name) != current.get(name):
            raise ValueError(
                f"The checkpoint numbers {len(saved)} classes and the data set {len(current)}, and they differ at "
                f"{name!r}: class {saved.get(name)} in the checkpoint, {current.get(name)} in the data. "
                "Resume with the data set that the run began with."
            )
