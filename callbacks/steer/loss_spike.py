"""A loss that jumps: said, and the checkpoint from before it kept."""

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
from polytoken.errors import UserError
from polytoken.loading import read_metadata

logger = logging.getLogger(__name__)

LEAST = 20  # values without which there is nothing to compare with


class LossSpike(pl.Callback):
    """Says when the training loss jumps, and keeps the last checkpoint from before as ``step_<n>.ckpt``.

    A value is a spike if it lies further above the median of the last ``window`` updates than ``deviations`` times
    their median absolute deviation. It changes no number: what bounds the update is the clipping of gradients. After a
    spike it begins to compare anew, so a loss that stays high is reported once. Rank zero watches its own loss.

    Args:
        deviations: above which a value is a spike.
        window: updates to compare with.
        metric: what is watched, as it is logged.
    """

    def __init__(self, deviations: float = 20.0, window: int = 200, metric: str = "train/loss") -> None:
        if deviations <= 0 or window < LEAST:
            raise UserError(f"deviations is {deviations} and window {window}: above 0, and at least {LEAST}.")
        self.deviations = deviations
        self.metric = metric
        self._values: deque[float] = deque(maxlen=window)
        self._step = -1

    def state_dict(self) -> dict[str, Any]:
        """The values to compare with."""
        return {"values": [*self._values]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore them."""
        self._values.extend(state_dict["values"])

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Look at the loss of an update; Lightning calls this before it writes a checkpoint after the same batch."""
        value = trainer.callback_metrics.get(self.metric)
        if value is None or not trainer.is_global_zero or trainer.global_step == self._step:
            return
        self._step, loss = trainer.global_step, float(value)
        usual = median(self._values) if len(self._values) >= LEAST else None
        if usual is not None:
            spread = median(abs(value - usual) for value in self._values)
            if loss - usual > self.deviations * spread and isfinite(loss):
                logger.warning(
                    "step %d: %s is %.4g, and was about %.4g before; %s",
                    *(self._step - 1, self.metric, loss, usual, _keep(trainer)),
                )
                self._values.clear()
        if isfinite(loss):
            self._values.append(loss)


def _keep(trainer: pl.Trainer) -> str:
    """Give the last checkpoint a name that stays, and say which."""
    writer = next((callback for callback in trainer.callbacks if isinstance(callback, LastCheckpoint)), None)
    last = Path(writer.last_model_path) if writer is not None else None
    if last is None or not last.exists():
        return "there is no checkpoint from before it"
    kept = last.with_name(f"step_{read_metadata(last)['global_step']}.ckpt")
    if not kept.exists():
        copy(last, kept)
    return f"the checkpoint from before it stays as {kept}"
