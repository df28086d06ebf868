"""The file metrics.json of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from artifacts.metrics import merge_section
from artifacts.provenance import commit, machine, versions
from artifacts.run_files import METRICS, Measured
from polytoken.loading import GLOBAL_STEP


class MetricsFile(Callback):
    """Writes `metrics.json` into the run's directory when fit, validate or test ends.

    The file has a section per command, so that none erases another's. A section holds the metrics, the step of the
    weights, the number ``n`` of measured images of all ranks (null if batches do not number their images), the
    versions, the machine, and the commit of the code in a git repository.

    Args:
        path: the file; by default `metrics.json` in the trainer's root directory.
    """

    def __init__(self, path: str | None = None) -> None:
        self.path = path
        self._step_of_weights = 0
        self._images: torch.Tensor | None = None  # number in the current or last validation or test

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        # Outside of fit, Lightning leaves its own counters at 0. Loggers need the step too: at an earlier step than the
        # last one, TensorBoard drops the points of the fit, and W&B the new ones.
        self._step_of_weights = checkpoint[GLOBAL_STEP]
        if trainer.state.fn in ("validate", "test"):
            loop = checkpoint.get("loops", {}).get("fit_loop", {}).get("epoch_loop.state_dict", {})
            step = loop.get("_batches_that_stepped", self._step_of_weights)
            trainer.fit_loop.epoch_loop._batches_that_stepped = step

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer, "fit")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._images = None

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        if isinstance(batch, dict) and "index" in batch:
            self._images = (batch["index"] >= 0).sum() + (0 if self._images is None else self._images)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._images is not None:  # all ranks have a batch if one has
            self._images = trainer.strategy.reduce(self._images, reduce_op="sum")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "validate":
            self._write(trainer, "validate")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer, "test")

    on_test_start = on_validation_start
    on_test_batch_end = on_validation_batch_end
    on_test_epoch_end = on_validation_epoch_end

    def _write(self, trainer: Trainer, command: str) -> None:
        # restarting a finished run measures nothing and must not empty the file
        if not trainer.is_global_zero or trainer.fast_dev_run or not trainer.callback_metrics:
            return
        path = Path(self.path or Path(trainer.default_root_dir) / METRICS)
        section: Measured = {
            "global_step": max(trainer.global_step, self._step_of_weights),
            "n": None if self._images is None else int(self._images),
            "metrics": {name: _number(value) for name, value in sorted(trainer.callback_metrics.items())},
            "versions": versions("torch", "lightning"),
            "machine": machine(),
            "commit": commit(),
        }
        merge_section(path, command, section)


def _number(value: torch.Tensor) -> float | None:
    """A float; None for NaN and infinity, which JSON lacks."""
    return float(value) if torch.isfinite(value) else None
