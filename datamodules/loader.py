"""Loader of batches that resumes inside an epoch, and reports a mistake that a worker has met as one sentence."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import wait
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from polytoken.errors import UserError

log = logging.getLogger(__name__)

SECONDS_AFTER_SIGTERM = 60
KILLED = (signal.SIGKILL, signal.SIGBUS, signal.SIGSEGV)


class ResumableLoader(DataLoader[Any]):
    """A DataLoader that Lightning may resume mid-epoch: its order asks the data module for the position."""

    workers: Sequence[Any] = ()

    def __iter__(self) -> Any:
        iterator = super().__iter__()
        # multiprocessing.active_children, the public way to the processes, drops those that have ended
        self.workers = getattr(iterator, "_workers", ())
        return Reported(iterator, self)

    def take_killed(self) -> list[Any]:
        """The workers that were killed and have ended, each once."""
        killed = [one for one in self.workers if one.exitcode is not None and -one.exitcode in KILLED]
        self.workers = [one for one in self.workers if one not in killed]
        return killed

    # Lightning asks for these two methods; the state is the data module's, as Lightning sometimes drops a loader's.

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass


class Collated(Dataset[Any]):
    """A data set that collates its rows itself, and returns a UserError in place of the batch in which it was raised.

    torch would raise it in the reading process with the traceback of the worker as its message.

    Args:
        rows: The data set.
        collate: Rows to a batch.
    """

    def __init__(self, rows: Dataset[Any], collate: Callable[[list[Any]], Any]) -> None:
        self.rows, self.collate = rows, collate

    def __len__(self) -> int:
        return len(self.rows)  # type: ignore[arg-type]

    def __getitems__(self, indices: list[Any]) -> Any:  # torch's name for a whole batch
        try:
            return self.collate([self.rows[index] for index in indices])
        except UserError as error:
            return error


def name_killed(loaders: Iterable[ResumableLoader], exception: BaseException) -> None:
    """Log which workers were killed, each once: the exception itself may only tell of a broken connection.

    Args:
        loaders: whose workers these are.
        exception: what was raised in this process.
    """
    loaders = list(loaders)
    if workers := {worker.sentinel: worker for loader in loaders for worker in loader.workers}:
        # A worker's connections break before it has ended, which takes a large process seconds. At that moment torch
        # may raise its own error from a signal handler, anywhere in this process.
        broken = isinstance(exception, (ConnectionError, EOFError)) or "DataLoader worker" in str(exception)
        with suppress(RuntimeError):
            for sentinel in wait([*workers], timeout=20 if broken else 1):
                workers[sentinel].join()
    for worker in [one for loader in loaders for one in loader.take_killed()]:
        log.error(
            "the data worker with process id %d was ended by %s, which happens when memory runs out: lower "
            "data.num_workers or data.batch_size and start the run again; the last checkpoint is whole",
            worker.pid,
            signal.Signals(-worker.exitcode).name,
        )


class Reported:
    """Iterator over batches of `Collated` that raises their errors in this process, and names killed workers."""

    def __init__(self, batches: Iterator[Any], loader: ResumableLoader) -> None:
        self.batches, self.loader = batches, loader

    def __iter__(self) -> Reported:
        return self

    def __next__(self) -> Any:
        try:
            batch = next(self.batches)
        except (OSError, EOFError, RuntimeError) as error:
            # at once: until a hook of the trainer is called, torch may have raised a second error
            name_killed([self.loader], error)
            raise
        if isinstance(batch, UserError):
            raise batch
        return batch


def new_loader(
    dataset: Dataset[Any],
    order: Sampler[Any] | Sequence[int] | None,
    batch_size: int,
    collate: Callable[[list[Any]], Any],
    num_workers: int,
    seed: int = 0,
) -> ResumableLoader:
    """Return the loader of a data set; None as its order reads all rows one after the other."""
    return ResumableLoader(
        Collated(dataset, collate),
        batch_size=batch_size,
        sampler=order,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        worker_init_fn=_leave_signals_to_the_rank,
        collate_fn=_as_it_is,
        pin_memory=torch.cuda.is_available(),
        # a loader draws a seed for its workers, by default from the global generator, which the model uses too
        generator=torch.Generator().manual_seed(seed),
    )


def _as_it_is(batch: Any) -> Any:
    return batch


def _leave_signals_to_the_rank(worker: int) -> None:
    # SLURM and terminals signal every process, and a dead worker would end its rank before it has saved. Some ranks
    # end their workers by SIGTERM, so that signal does end a worker, with a delay.
    for signum in (signal.SIGUSR1, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(signum, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(SECONDS_AFTER_SIGTERM))
