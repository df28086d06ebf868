"""Callbacks that make a run fail."""

import multiprocessing
import os
import signal

import lightning.pytorch as pl


class KillWorker(pl.Callback):
    """SIGKILL to the processes that load the data, at the end of the batch that makes ``step`` updates."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: pl.Trainer, *_) -> None:
        if trainer.global_step == self.step:
            workers = multiprocessing.active_children()
            assert workers
            for worker in workers:
                os.kill(worker.pid, signal.SIGKILL)


class Fail(pl.Callback):
    """Raises an error on one rank only."""

    def __init__(self, step: int, rank: int) -> None:
        self.step = step
        self.rank = rank

    def on_train_batch_end(self, trainer: pl.Trainer, *_) -> None:
        if trainer.global_step == self.step and trainer.global_rank == self.rank:
            raise OSError("the disk fell off")
