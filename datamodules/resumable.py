"""What data modules have in common: an order that knows the ranks, and a place in it that checkpoints carry."""

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

log = logging.getLogger(__name__)

SECONDS_AFTER_SIGTERM = 60
KILLED = (signal.SIGKILL, signal.SIGBUS, signal.SIGSEGV)


class ResumableDataModule(LightningDataModule, ABC):
    """A data module whose training stream continues, from any checkpoint, with the next batch.

    Use with `Trainer(use_distributed_sampler=False)`: the order knows the ranks itself.

    Args:
        batch_size: Training rows a step on each device.
        num_workers: Processes that read, on each device; 0 reads in the training process.
        seed: Seed of order and augmentation, not negative.
    """

    def __init__(self, batch_size: int, num_workers: int, seed: int) -> None:
        super().__init__()
        if seed < 0:
            raise UserError(f"data.seed={seed}: expected a number that is not negative.")
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self._loaders: WeakSet[ResumableLoader] = WeakSet()  # their workers end with them
        # The stream stands at the Trainer's count of batches plus this offset; see `load_state_dict`.
        self._offset = 0
        self._restored_batches = 0

    @property
    @abstractmethod
    def class_to_idx(self) -> dict[str, int]:
        """The numbering of the classes."""

    @abstractmethod
    def _training_length(self) -> int:
        """Count the images of the training split."""

    def _loader(
        self,
        dataset: Dataset[Any],
        order: Sampler[Draw],
        batch_size: int,
        collate: Callable[[list[Any]], dict[str, Any]],
    ) -> "DataLoader[Any]":
        loader = ResumableLoader(
            dataset,
            batch_size=batch_size,
            sampler=order,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            worker_init_fn=_leave_signals_to_the_rank,
            collate_fn=collate,
            pin_memory=torch.cuda.is_available(),
            # a loader draws a seed for its workers, by default from the global generator that the model uses as well
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
        if self.trainer._accelerator_connector.use_distributed_sampler:
            raise UserError(
                "The Trainer would divide the images among the ranks a second time: set "
                "trainer.use_distributed_sampler=false."
            )
        return ranks["rank"], ranks["num_replicas"]

    def on_exception(self, exception: BaseException) -> None:
        """Say which worker was killed: the exception may be no more than a connection that was reset."""
        workers = {worker.sentinel: worker for loader in self._loaders for worker in loader.workers}
        if workers:
            # its connections break a moment before it has ended; torch may raise its own error at that moment, from a
            # signal handler, so wherever this process is
            with suppress(RuntimeError):
                for sentinel in wait([*workers], timeout=1):
                    workers[sentinel].join()
        for worker in workers.values():
            if worker.exitcode is not None and -worker.exitcode in KILLED:
                log.error(
                    "the data worker with process id %d was ended by %s, as happens when memory runs out: with fewer "
                    "data.num_workers or a smaller batch, start the run again; the last checkpoint is whole",
                    *(worker.pid, signal.Signals(-worker.exitcode).name),
                )

    def __getstate__(self) -> dict[str, Any]:
        """All but the loaders: a process that is spawned makes its own."""
        return {name: value for name, value in self.__dict__.items() if name != "_loaders"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Begin without loaders."""
        self.__dict__.update(state, _loaders=WeakSet())

    # -- where the run stands ------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Forget where an earlier fit stood."""
        if stage == "fit":
            self._offset = self._restored_batches = 0

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
                raise UserError(
                    f"The checkpoint was taken after batch {batch} of {per_epoch} of epoch {epoch}, but {differences}: "
                    "resume with the values of the checkpoint, or from one taken at the end of an epoch."
                )
            self._offset = epoch * order.batches_per_epoch - self._restored_batches


class ResumableLoader(DataLoader[Any]):
    """A DataLoader that tells Lightning it resumes mid-epoch: its order asks the data module where the run stands."""

    workers: Sequence[Any] = ()  # the processes that read

    def __iter__(self) -> Any:
        iterator = super().__iter__()
        self.workers = getattr(iterator, "_workers", ())
        return iterator

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: the data module's state says it all, and Lightning sometimes drops a loader's state."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Do nothing: see `state_dict`."""


def _leave_signals_to_the_rank(worker: int) -> None:
    # SLURM signals every process: a worker that died of it would take the rank along, before it has saved. But a rank
    # that ends may rely on SIGTERM, so that does end a worker, later.
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
