"""Base class of data modules: a training order shared by the ranks, with a position that checkpoints keep."""

from __future__ import annotations

import logging
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import wait
from typing import Any
from weakref import WeakSet

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import DataLoader, Dataset, Sampler

from datamodules.order import Draw, TrainingOrder
from polytoken.errors import UserError
from polytoken.ranges import LARGEST_SEED, at_least, within

log = logging.getLogger(__name__)

SECONDS_AFTER_SIGTERM = 60
MOST_WORKERS = 256  # processes of one rank
KILLED = (signal.SIGKILL, signal.SIGBUS, signal.SIGSEGV)


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
        self._restored_batches = 0

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
        loader = ResumableLoader(
            dataset,
            batch_size=batch_size,
            sampler=order,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            worker_init_fn=_leave_signals_to_the_rank,
            collate_fn=collate,
            pin_memory=torch.cuda.is_available(),
            # a loader draws a seed for its workers, by default from the global generator, which the model uses too
            generator=torch.Generator().manual_seed(self.seed),
        )
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
        """Name a killed worker: the exception itself may only report a connection that was reset."""
        workers = {worker.sentinel: worker for loader in self._loaders for worker in loader.workers}
        if workers:
            # A worker's connections break a moment before it has ended. At that moment torch may raise its own error
            # from a signal handler, anywhere in this process.
            with suppress(RuntimeError):
                for sentinel in wait([*workers], timeout=1):
                    workers[sentinel].join()
        for worker in workers.values():
            if worker.exitcode is not None and -worker.exitcode in KILLED:
                log.error(
                    "the data worker with process id %d was ended by %s, which happens when memory runs out: lower "
                    "data.num_workers or data.batch_size and start the run again; the last checkpoint is whole",
                    worker.pid,
                    signal.Signals(-worker.exitcode).name,
                )

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
            self._offset = self._restored_batches = 0

    def _position(self) -> int:
        # If configure_optimizers reads `estimated_stepping_batches`, the loader is iterated before Lightning restores
        # its counter; the count in our own state is restored by then.
        return self._offset + max(self._batches_trained(), self._restored_batches)

    def _batches_trained(self) -> int:
        # `processed` is right whenever a checkpoint can be taken: it is incremented before on_train_batch_end, but
        # `completed` after it, and `ready` already counts a batch that fails halfway and is trained again. The total
        # runs over all epochs, so an epoch cut short by max_steps is resumed inside as well.
        return self.trainer.fit_loop.epoch_loop.batch_progress.total.processed if self.trainer else 0

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the training stream, the settings it depends on, and the class numbers."""
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
        """Continue training at the position of the checkpoint.

        Raises:
            UserError: The class numbers differ, or the checkpoint lies inside an epoch and the seed, the global batch
                size or the size of the split has changed since.
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
                raise UserError(
                    f"The checkpoint was taken after batch {batch} of {per_epoch} of epoch {epoch}, but {differences}: "
                    "resume with the values of the checkpoint, or from one taken at the end of an epoch."
                )
            self._offset = epoch * order.batches_per_epoch - self._restored_batches


class ResumableLoader(DataLoader[Any]):
    """A DataLoader that Lightning may resume mid-epoch: its order asks the data module for the position."""

    workers: Sequence[Any] = ()

    def __iter__(self) -> Any:
        iterator = super().__iter__()
        # multiprocessing.active_children, the public way to the processes, drops those that have ended
        self.workers = getattr(iterator, "_workers", ())
        return iterator

    # Lightning asks for these two methods; the state is the data module's, as Lightning sometimes drops a loader's.

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass


def _leave_signals_to_the_rank(worker: int) -> None:
    # SLURM signals every process, and a dead worker would end its rank before it has saved. Some ranks end their
    # workers by SIGTERM, so that signal does end a worker, with a delay.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(SECONDS_AFTER_SIGTERM))


def _check_same_classes(saved: dict[str, int], current: dict[str, int]) -> None:
    for name in sorted(saved.keys() | current.keys()):
        if saved.get(name) != current.get(name):
            raise UserError(
                f"The checkpoint numbers {len(saved)} classes and the data set {len(current)}, and they differ at "
                f"{name!r}: class {saved.get(name)} in the checkpoint, {current.get(name)} in the data. "
                "Resume with the data set that the run began with."
            )
