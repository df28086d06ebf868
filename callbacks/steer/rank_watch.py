"""Among several ranks each learns within a minute that another one is gone, says which, and ends."""

from __future__ import annotations

import logging
import os
import threading
from contextlib import suppress
from datetime import timedelta

import lightning.pytorch as pl
import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

logger = logging.getLogger(__name__)

EXIT_CODE = 1


class RankWatch(pl.Callback):
    """Ends a rank that would wait for one that is dead, stopped or failed, and names that one.

    Whether the others notice by themselves depends on what carries the messages: gloo breaks off without a name, NCCL
    waits for half an hour. So each rank counts up a number in the store through which the ranks have met, and reads
    those of the others; a rank whose number stands still for ``beats`` rounds is lost. Rounds, not seconds: a job that
    was suspended as a whole finds nobody missing when it goes on. A rank is watched from its first beat on.

    A rank whose main thread waits for good while its threads run is not found: the time limit of the process group is
    for that.

    Args:
        seconds: between two beats.
        beats: without a sign of life until a rank is lost; with the defaults that is 45 s.
    """

    def __init__(self, seconds: float = 5.0, beats: int = 8) -> None:
        self.seconds = seconds
        self.beats = beats
        self._rounds = 0
        self._threads: list[threading.Thread] = []

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Begin, if there is more than one rank."""
        if self._threads or not self._meet(clone=True):
            return
        targets = (self._beat, self._watch)
        self._threads = [threading.Thread(target=target, args=(self._stop,), daemon=True) for target in targets]
        for thread in self._threads:
            thread.start()

    def _meet(self, clone: bool) -> bool:
        """Whether there is more than one rank; then this one can tell the others something, by a connection it has."""
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return False
        self._rank = dist.get_rank()
        self._others = [rank for rank in range(dist.get_world_size()) if rank != self._rank]
        self._rounds += 1
        # a connection of its own: the other may be held for as long as a rank waits for another one
        store = _get_default_store()
        self._store = dist.PrefixStore(f"watch {self._rounds}", store.clone() if clone else store)
        self._counts: dict[int, int] = {}
        self._left: dict[int, str] = {}  # why a rank has ended; empty if that was in order
        self._patience = self.beats
        self._breaks_off, self._stop, self._found = False, threading.Event(), threading.Event()
        return True

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """End in order."""
        if self._threads:
            self._leave("")

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Tell the others why this rank ends; if it ends because of another one, find out which."""
        if not self._threads and (_broke_off(exception) or not self._meet(clone=False)):  # a failure before it began
            return
        if not isinstance(exception, Exception):  # asked to stop (callbacks.Requeue)
            self._leave("")
        elif not _broke_off(exception):
            self._leave(f"{type(exception).__name__}: {str(exception).splitlines()[0] if str(exception) else ''}"[:300])
        else:
            self._breaks_off, self._patience = True, min(3, self.beats)  # it is known that somebody is gone
            self._found.wait((self._patience + 3) * self.seconds)
            self._leave("")

    def _leave(self, why: str) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=self.seconds)  # it may wait for a store that is gone
        self._threads = []
        with suppress(RuntimeError):  # the store may be gone with the rank that keeps it
            self._store.set(f"left {self._rank}", why)
            self._store.set(f"read {self._rank}", "")
            if self._rank == 0:  # the store goes with it, so not before the others know why
                self._store.wait([f"read {rank}" for rank in self._others], timedelta(seconds=2 * self.seconds))

    def _beat(self, stop: threading.Event) -> None:
        """Count up, and look at the others; where that is impossible, their counts stand still."""
        try:
            while not stop.is_set():
                self._store.add(f"beat {self._rank}", 1)
                counts = {}
                for rank in self._others:
                    if rank not in self._left and self._store.check([f"left {rank}"]):
                        self._left[rank] = self._store.get(f"left {rank}").decode()
                        if rank == 0:
                            self._store.set(f"read {self._rank}", "")
                    counts[rank] = self._store.add(f"beat {rank}", 0)
                self._counts = counts
                stop.wait(self.seconds)
        except RuntimeError:  # the store is gone with the rank that keeps it
            if self._left.get(0) == "":
                stop.set()  # in order, as a rank that has predicted its part: nobody can be watched any more

    def _watch(self, stop: threading.Event) -> None:
        seen: dict[int, int] = {}
        silent = dict.fromkeys(self._others, 0)
        failed = 0
        while not stop.wait(self.seconds):
            counts, left = self._counts, dict(self._left)
            for rank, count in counts.items():
                silent[rank] = silent[rank] + 1 if count == seen.get(rank, 0) > 0 and rank not in left else 0
            seen = counts
            lost = [rank for rank in self._others if silent[rank] >= self._patience]
            failed += any(left.values())
            # a rank that failed has said so; the others may be about to fail in the same way, and say it themselves
            if lost or failed > 2:
                self._end(lost, {rank: why for rank, why in left.items() if why})
                return

    def _end(self, lost: list[int], failed: dict[int, str]) -> None:
        found = [f"rank {rank} failed ({why})" for rank, why in failed.items()]
        if lost and not failed:
            # all at once: it is the one that keeps the store, or the network of this one
            names = [0] if 0 in lost and len(lost) == len(self._others) else lost
            found = [f"rank {rank} was lost: no sign of life for {self._patience * self.seconds:g} s" for rank in names]
        logger.error(
            "rank %d ends, since %s. The last checkpoint is whole: start the run again", self._rank, "; ".join(found)
        )
        self._found.set()
        if not self._breaks_off:  # or it ends by itself, with a traceback
            logging.shutdown()
            os._exit(EXIT_CODE)  # the main thread may wait within a library, where no exception reaches it


def _broke_off(error: BaseException) -> bool:
    """Whether the connection to another rank broke; gloo's errors have no class of their own."""
    text = str(error)
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(word in text for word in ("gloo", "NCCL", "onnection"))
    )
