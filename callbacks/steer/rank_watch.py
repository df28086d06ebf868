"""Heartbeat between ranks: names a lost rank and exits within a minute."""

from __future__ import annotations

import logging
import os
import threading
from contextlib import suppress
from datetime import timedelta

import lightning.pytorch as pl
import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store  # private: a store of our own needs another open port

from polytoken.distributed import several_ranks
from polytoken.errors import first_line

logger = logging.getLogger(__name__)

EXIT_CODE = 1
ASKED = "was asked to stop"


class RankWatch(pl.Callback):
    """Exits, and names the other rank, when that rank is dead, stopped or failed.

    Without it the backend decides: gloo breaks off without a name, and NCCL waits for half an hour. Each rank
    increments a counter in the rendezvous store and reads those of the others. A rank whose counter does not change for
    ``beats`` rounds is lost. Rounds instead of seconds let a job be suspended as a whole. A rank is watched from its
    first beat; rank 0, which serves the store, from the start.

    A rank that was asked to stop leaves alone in a prediction or test, and the others would wait for it in the end:
    they have ``beats`` rounds to leave as well.

    A rank whose main thread hangs while its other threads run is not detected; the timeout of the process group covers
    that case.

    torchrun's agent covers neither a stopped rank nor ranks that srun or Lightning started, and NCCL's watchdog does
    not exist for gloo.

    Args:
        seconds: between two beats.
        beats: rounds without a beat until a rank is lost; 45 s with the defaults.
    """

    def __init__(self, seconds: float = 5.0, beats: int = 8) -> None:
        self.seconds = seconds
        self.beats = beats
        self._rounds = 0
        self._threads: list[threading.Thread] = []

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Start the threads if there are several ranks."""
        if self._threads or not self._meet(clone=True):
            return
        targets = (self._beat, self._watch)
        self._threads = [threading.Thread(target=target, args=(self._stop,), daemon=True) for target in targets]
        for thread in self._threads:
            thread.start()

    def _meet(self, clone: bool) -> bool:
        """Connect to the store; False if there is only one rank."""
        if not several_ranks():
            return False
        self._rank = dist.get_rank()
        self._others = [rank for rank in range(dist.get_world_size()) if rank != self._rank]
        self._rounds += 1
        # a separate connection: the default one is blocked while a rank waits for another
        store = _get_default_store()
        self._store = dist.PrefixStore(f"watch {self._rounds}", store.clone() if clone else store)
        self._counts: dict[int, int] = {}
        self._left: dict[int, str] = {}  # predicate of a rank that exits early; empty if it finished
        self._patience = self.beats
        self._breaks_off, self._without_store = False, False
        self._stop, self._found = threading.Event(), threading.Event()
        return True

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Publish that this rank has finished."""
        if self._threads:
            self._leave("")

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Publish the reason for this rank's exit; if another rank is the cause, wait for its name."""
        if not self._threads and (_broke_off(exception) or not self._meet(clone=False)):
            return  # a failure before the threads started
        if isinstance(exception, SystemExit | KeyboardInterrupt):  # such as that of callbacks.Requeue
            self._leave(ASKED)
        elif not _broke_off(exception):
            self._leave(f"failed ({type(exception).__name__}: {first_line(exception)})")
        else:
            self._breaks_off, self._patience = True, min(3, self.beats)  # another rank is known to be gone
            self._found.wait((self._patience + 3) * self.seconds)
            self._leave("")

    def _leave(self, why: str) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=self.seconds)  # the thread may wait for a store that is gone
        self._threads = []
        with suppress(RuntimeError):  # the store is gone if rank 0, which serves it, is
            self._store.set(f"left {self._rank}", why)
            self._store.set(f"read {self._rank}", "")
            if self._rank == 0:  # rank 0 serves the store, so it exits after the others have read
                self._store.wait([f"read {rank}" for rank in self._others], timedelta(seconds=2 * self.seconds))

    def _beat(self, stop: threading.Event) -> None:
        """Increment this rank's counter, and read those of the others, which freeze if the store is gone."""
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
        except RuntimeError:  # the store is gone with rank 0
            if self._left.get(0) == "":
                stop.set()  # rank 0 has finished: nothing is left to watch
            self._without_store = True

    def _watch(self, stop: threading.Event) -> None:
        seen: dict[int, int] = {}
        silent = dict.fromkeys(self._others, 0)
        ending = 0  # rounds since a rank has left early
        while not stop.wait(self.seconds):
            counts, left = self._counts, dict(self._left)
            for rank in self._others:
                is_silent = counts.get(rank, 0) == seen.get(rank, 0) > 0 or self._without_store
                silent[rank] = silent[rank] + 1 if is_silent and rank not in left else 0
            seen = counts
            lost = [rank for rank in self._others if silent[rank] >= self._patience]
            early = {rank: why for rank, why in left.items() if why}
            ending += bool(early)
            # after a failure, the others have two rounds to report theirs; after a stop, the time to leave as well
            if lost or ending > (self._patience if {*early.values()} == {ASKED} else 2):
                self._end(lost, early)
                return

    def _end(self, lost: list[int], early: dict[int, str]) -> None:
        found = [f"rank {rank} {why}" for rank, why in early.items()]
        if lost and not early:
            # all at once: rank 0, which serves the store, or the network of this rank
            names = [0] if 0 in lost and len(lost) == len(self._others) else lost
            found = [f"rank {rank} was lost: no sign of life for {self._patience * self.seconds:g} s" for rank in names]
        logger.error(
            "rank %d exits: %s. The last checkpoint is whole: start the run again", self._rank, "; ".join(found)
        )
        self._found.set()
        if not self._breaks_off:  # else it exits with the traceback of the exception
            logging.shutdown()
            os._exit(EXIT_CODE)  # the main thread may hang within a library, where no exception reaches it


def _broke_off(error: BaseException) -> bool:
    """True if the connection to another rank broke; errors of gloo are plain RuntimeErrors."""
    text = str(error)
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(word in text for word in ("gloo", "NCCL", "onnection"))
    )
