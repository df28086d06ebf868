"""A callback that ends the process as a power cut would, or asks it to end."""

import os
import signal

import lightning.pytorch as pl


class KillAfter(pl.Callback):
    """A signal to one rank at the end of the batch that makes ``step`` updates, or in the validation after it."""

    def __init__(self, step: int, name: str = "SIGKILL", rank: int = 0, in_validation: bool = False) -> None:
        self.step = step
        self.name = name
        self.rank = rank
        self.in_validation = in_validation

    def on_train_batch_end(self, trainer: pl.Trainer, *_) -> None:
        if not self.in_validation:
            self._signal(trainer)

    def on_validation_batch_start(self, trainer: pl.Trainer, *_) -> None:
        if self.in_validation:
            self._signal(trainer)

    def _signal(self, trainer: pl.Trainer) -> None:
        if trainer.global_step == self.step and trainer.global_rank == self.rank:
            os.kill(os.getpid(), signal.Signals[self.name])


class KillInPrediction(pl.Callback):
    """SIGKILL once a rank has predicted ``batches`` batches."""

    def __init__(self, batches: int) -> None:
        self.batches = batches

    def on_predict_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_) -> None:
        self.batches -= 1
        if not self.batches:
            os.kill(os.getpid(), signal.SIGKILL)
