"""The numbers of a run in one file."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from artifacts.metrics import merge_section
from artifacts.provenance import commit, machine, versions


class MetricsFile(Callback):
    """Writes `metrics.json` into the run's directory when fit, validate or test ends.

    The file has one section a command, so that none erases another's: the metrics, the step they belong to, the number
    ``n`` of images of all ranks that they were measured on (null if batches do not number their images), the versions,
    the machine, and the commit of the code if it is in a git repository.

    Args:
        path: The file; by default `metrics.json` in the trainer's root directory.
    """

    def __init__(self, path: str | None = None) -> None:
        self.path = path
        self._step_of_weights = 0
        self._images: torch.Tensor | None = None  # seen in the validation or test that goes on or was the last

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take note of the step: outside of fit, Lightning leaves its own counter at 0."""
        self._step_of_weights = checkpoint["global_step"]

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the section `fit`."""
        self._write(trainer, "fit")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start counting anew."""
        self._images = None

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Count the images, without rows that only pad a batch."""
        if isinstance(batch, dict) and "index" in batch:
            self._images = (batch["index"] >= 0).sum() + (0 if self._images is None else self._images)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add up the ranks, each of which has a batch if one has."""
        if self._images is not None:
            self._images = trainer.strategy.reduce(self._images, reduce_op="sum")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the section `validate`, unless this validation is part of fit."""
        if trainer.state.fn == "validate":
            self._write(trainer, "validate")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the section `test`."""
        self._write(trainer, "test")

    on_test_start = on_validation_start
    on_test_batch_end = on_validation_batch_end
    on_test_epoch_end = on_validation_epoch_end

    def _write(self, trainer: Trainer, command: str) -> None:
        # Starting a finished run again measures nothing, and must not empty the file.
        if not trainer.is_global_zero or trainer.fast_dev_run or not trainer.callback_metrics:
            return
        path = Path(self.path or Path(trainer.default_root_dir) / "metrics.json")
        section = {
            "global_step": max(trainer.global_step, self._step_of_weights),
            "n": None if self._images is None else int(self._images),
            "metrics": {name: _number(value) for name, value in sorted(trainer.callback_metrics.items())},
            "versions": versions("torch", "lightning"),
            "machine": machine(),
            "commit": commit(),
        }
        merge_section(path, command, section)


def _number(value: torch.Tensor) -> float | None:
    """A float; JSON knows no NaN and no infinity, so these are null."""
    return float(value) if torch.isfinite(value) else None
