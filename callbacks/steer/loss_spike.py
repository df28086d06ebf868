"""Report of a spike of the training loss."""

from __future__ import annotations

import logging
from collections import deque
from math import isfinite
from pathlib import Path
from statistics import median
from typing import Any

import lightning.pytorch as pl

from artifacts.checkpoint_files import copy
from callbacks.checkpoint.last_checkpoint import LastCheckpoint
from polytoken.loading import recorded_step
from polytoken.ranges import above, at_least

logger = logging.getLogger(__name__)

LEAST = 20  # values before the first comparison


class LossSpike(pl.Callback):
    """Warns when the training loss jumps, and keeps the last checkpoint before it as ``step_<n>.ckpt``.

    A value is a spike if it exceeds the median of the last ``window`` steps by more than ``deviations`` times their
    median absolute deviation. Training is not changed; gradient clipping bounds the update. The window is emptied after
    a spike, so that a loss that stays high is reported once. Rank 0 watches its own loss, which it reads from the
    device in each step.

    Lightning's SpikeDetection raises at a spike, and compares with a running mean, which the spike itself moves.

    Args:
        deviations: median absolute deviations above which a value is a spike.
        window: number of steps to compare with.
        metric: name of the logged loss.
    """

    def __init__(self, deviations: float = 20.0, window: int = 200, metric: str = "train/loss") -> None:
        above(0, self, deviations=deviations)
        at_least(LEAST, self, window=window)
        self.deviations = deviations
        self.metric = metric
        self._values: deque[float] = deque(maxlen=window)
        self._step = -1

    def state_dict(self) -> dict[str, Any]:
        return {"values": [*self._values]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._values.extend(state_dict["values"])

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Compare the loss of this step; Lightning saves a checkpoint after the same batch later."""
        value = trainer.callback_metrics.get(self.metric)
        if value is None or not trainer.is_global_zero or trainer.global_step == self._step:
            return
        self._step, loss = trainer.global_step, float(value)
        usual = median(self._values) if len(self._values) >= LEAST else None
        if usual is not None:
            spread = median(abs(value - usual) for value in self._values)
            if loss - usual > self.deviations * spread and isfinite(loss):
                logger.warning(
                    "step %d: %s is %.4g, and its median was %.4g; %s",
                    self._step - 1,
                    self.metric,
                    loss,
                    usual,
                    _keep(trainer),
                )
                self._values.clear()
        if isfinite(loss):
            self._values.append(loss)


def _keep(trainer: pl.Trainer) -> str:
    """Give the last checkpoint a permanent name, and describe it."""
    writer = next((callback for callback in trainer.callbacks if isinstance(callback, LastCheckpoint)), None)
    last = Path(writer.last_model_path) if writer is not None else None
    if last is None or not last.exists():
        return "no checkpoint was written before it"
    if (step := recorded_step(last)) is None:
        return f"the checkpoint before it, {last}, cannot be read"
    kept = last.with_name(f"step_{step}.ckpt")
    if not kept.exists():
        copy(last, kept)
    return f"the checkpoint before it is kept as {kept}"
