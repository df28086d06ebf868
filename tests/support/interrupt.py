"""Callbacks that end the process as a power cut would."""

import os
import signal

import lightning.pytorch as pl


class KillAfter(pl.Callback):
    """SIGKILL at the end of the batch that makes ``step`` updates."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: pl.Trainer, *_) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


class KillInPrediction(pl.Callback):
    """SIGKILL once a rank has predicted ``batches`` batches."""

    def __init__(self, batches: int) -> None:
        self.batches = batches

    def on_predict_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_) -> None:
        self.batches -= 1
        if not self.batches:
            os.kill(os.getpid(), signal.SIGKILL)
