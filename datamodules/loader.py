"""Loader of batches that resumes inside an epoch, and reports a mistake that a worker has met as one sentence."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from polytoken.errors import UserError

SECONDS_AFTER_SIGTERM = 60


class ResumableLoader(DataLoader[Any]):
    """A DataLoader that Lightning may resume mid-epoch: its order asks the data module for the position."""

    workers: Sequence[Any] = ()

    def __iter__(self) -> Any:
        iterator = super().__iter__()
        # multiprocessing.active_children, the public way to the processes, drops those that have ended
        self.workers = getattr(iterator, "_workers", ())
        return Reported(iterator)

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


class Reported:
    """Iterator over batches of `Collated` that raises their errors in this process."""

    def __init__(self, batches: Iterator[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> Reported:
        return self

    def __next__(self) -> Any:
        batch = next(self.batches)
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
