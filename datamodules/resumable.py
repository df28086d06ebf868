"""Base class of data modules: a training order shared by the ranks, with a position that checkpoints keep."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Annotated, Any
from weakref import WeakSet

import msgspec
from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import DataLoader, Dataset, Sampler

from datamodules.loader import ResumableLoader, name_killed, new_loader
from datamodules.order import Draw, TrainingOrder
from polytoken import records
from polytoken.errors import UserError
from polytoken.ranges import LARGEST_SEED, at_least, within

MOST_WORKERS = 256  # processes of one rank

AtLeast1 = Annotated[int, msgspec.Meta(ge=1)]
NotNegative = Annotated[int, msgspec.Meta(ge=0)]


class Position(msgspec.Struct):
    """State of a data module in a checkpoint.

    Args:
        batches_trained: the Trainer's count of batches.
        offset: what is added to it to give the position in the stream.
        seed: of order and augmentation.
        global_batch_size: of all ranks.
        length: images of the training split.
        class_to_idx: class numbers by name.
        data: the other settings that decide which pixels come next, by key.
        images_trained: images of all batches, each of the size that it had; None in older checkpoints.
    """

    batches_trained: NotNegative
    offset: int
    seed: int
    global_batch_size: AtLeast1
    length: AtLeast1
    class_to_idx: dict[str, int]
    data: dict[str, Any] = {}
    images_trained: NotNegative | None = None


def images_until(position: Position) -> int:
    """Images trained until a position; of an older checkpoint as if no batch had had another size."""
    if position.images_trained is not None:
        return position.images_trained
    return position.batches_trained * position.global_batch_size


class ResumableDataModule(LightningDataModule, ABC):
    """A data module whose training stream continues, from any checkpoint, with the next batch.

    The order divides the rows among the ranks, so use `Trainer(use_distributed_sampler=False)`.

    Args:
        batch_size: Training rows a step on each device.
        num_workers: Worker processes of each device; 0 reads in the training process.
        seed: Seed of order and augmentation, not negative.
    """

    def __init__(self, batch_size: int, num_workers: int, seed: int) -> None:
        super().__init__()
        within(0, LARGEST_SEED, self, seed=seed)
        at_least(1, self, batch_size=batch_size)
        within(0, MOST_WORKERS, self, num_workers=num_workers)
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self._loaders: WeakSet[ResumableLoader] = WeakSet()  # weak: the workers end with their loader
        # Position of the stream = the Trainer's count of batches + this offset; see `load_state_dict`.
        self._offset = 0
        self._restored_batches = self._restored_images = 0

    @property
    @abstractmethod
    def class_to_idx(self) -> dict[str, int]:
        """Class numbers by name."""

    @abstractmethod
    def _training_length(self) -> int:
        """Count the images of the training split."""

    def _loader(
        self,
        dataset: Dataset[Any],
        order: Sampler[Draw],
        batch_size: int,
        collate: Callable[[list[Any]], dict[str, Any]],
    ) -> DataLoader[Any]:
        loader = new_loader(dataset, order, batch_size, collate, self.num_workers, self.seed)
        self._loaders.add(loader)
        return loader

    def _training_order(self) -> TrainingOrder:
        return TrainingOrder(self._training_length(), self.batch_size, *self._ranks(), self.seed, self._position)

    def _ranks(self) -> tuple[int, int]:
        ranks = self.trainer.distributed_sampler_kwargs if self.trainer else None
        if not ranks or ranks["num_replicas"] == 1:
            return 0, 1
        # no public attribute holds this argument of the Trainer
        if self.trainer._accelerator_connector.use_distributed_sampler:
            raise UserError(
                "The Trainer would divide the images among the ranks a second time: set "
                "trainer.use_distributed_sampler=false."
            )
        return ranks["rank"], ranks["num_replicas"]

    def on_exception(self, exception: BaseException) -> None:
        """Name a killed worker whose death torch reported outside of the loader."""
        name_killed(self._loaders, exception)

    def __getstate__(self) -> dict[str, Any]:
        """All attributes but the loaders: a spawned process makes its own."""
        return {name: value for name, value in self.__dict__.items() if name != "_loaders"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the attributes, without loaders."""
        self.__dict__.update(state, _loaders=WeakSet())

    # -- position in the training stream -------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Forget the position of an earlier fit."""
        if stage == "fit":
            self._offset = self._restored_batches = self._restored_images = 0

    def _position(self) -> int:
        # If configure_optimizers reads `estimated_stepping_batches`, the loader is iterated before Lightning restores
        # its counter; the count in our own state is restored by then.
        return self._offset + max(self._batches_trained(), self._restored_batches)

    def _batches_trained(self) -> int:
        # `processed` is right whenever a checkpoint can be taken: it is incremented before on_train_batch_end, but
        # `completed` after it, and `ready` already counts a batch that fails halfway and is trained again. The total
        # runs over all epochs, so an epoch cut short by max_steps is resumed inside as well.
        return self.trainer.fit_loop.epoch_loop.batch_progress.total.processed if self.trainer else 0

    def identity(self) -> dict[str, Any]:
        """Return what else decides which pixels or tokens come next, as plain data by key; a run keeps it for good."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the training stream, the settings it depends on, and the class numbers."""
        order, batches = self._training_order(), self._batches_trained()
        return msgspec.to_builtins(
            Position(
                batches_trained=batches,
                offset=self._offset,
                seed=self.seed,
                global_batch_size=order.global_batch_size,
                length=order.length,
                class_to_idx=dict(self.class_to_idx),
                data=self.identity(),
                images_trained=self._restored_images + (batches - self._restored_batches) * order.global_batch_size,
            )
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue training at the position of the checkpoint.

        Raises:
            UserError: The classes or the data are others, or the checkpoint lies inside an epoch and the seed, the
                global batch size or the size of the split has changed since.
        """
        if self.trainer and self.trainer.state.fn != TrainerFn.FITTING:
            return  # a model may be evaluated on any data
        where = (self.trainer and self.trainer.ckpt_path) or "the checkpoint"
        saved = records.decode(state_dict, Position, f"{where}: {type(self).__qualname__}")
        _check_same_classes(saved.class_to_idx, self.class_to_idx)
        _check_same_data(saved.data, msgspec.to_builtins(self.identity()))
        order = self._training_order()
        now = {"seed": self.seed, "global_batch_size": order.global_batch_size, "length": order.length}
        changed = [name for name, value in now.items() if value != getattr(saved, name)]
        self._restored_batches, self._offset = saved.batches_trained, saved.offset
        self._restored_images = images_until(saved)
        if changed:
            per_epoch = max(1, saved.length // saved.global_batch_size)
            epoch, batch = divmod(self._restored_batches + self._offset, per_epoch)
            if batch:
                differences = ", ".join(f"{name} was {getattr(saved, name)} and is {now[name]}" for name in changed)
                raise UserError(
                    f"The checkpoint was taken after batch {batch} of {per_epoch} of epoch {epoch}, but {differences}: "
                    "resume with the values of the checkpoint, or from one taken at the end of an epoch."
                )
            self._offset = epoch * order.batches_per_epoch - self._restored_batches


def _check_same_classes(saved: dict[str, int], current: dict[str, int]) -> None:
    for name in sorted(saved.keys() | current.keys()):
        if saved.get(name) != current.get(name):
            raise UserError(
                f"The checkpoint numbers {len(saved)} classes and the data set {len(current)}, and they differ at "
                f"{name!r}: class {saved.get(name)} in the checkpoint, {current.get(name)} in the data. "
                "Resume with the data set that the run began with."
            )


def _check_same_data(saved: dict[str, Any], current: dict[str, Any]) -> None:
    for key in saved.keys() & current.keys():
        if saved[key] != current[key]:
            raise UserError(
                f"data.{key} was {saved[key]} when the checkpoint was written, and is {current[key]}: restore it to "
                "resume the run, or set run.stage to a new name to start another one."
            )
