"""The file metrics.json of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from artifacts.metrics import merge_section
from artifacts.provenance import commit, machine, versions
from artifacts.run_files import METRICS, Measured, Metrics
from polytoken import records
from polytoken.loading import GLOBAL_STEP, TRAINING_METRICS


class MetricsFile(Callback):
    """Writes `metrics.json` into the run's directory when fit, validate or test ends.

    The file has a section per command, so that none erases another's. A section holds the metrics, the step of the
    weights, the number ``n`` of measured images of all ranks (null if batches do not number their images), the
    versions, the machine, and the commit of the code in a git repository. `fit` holds the last metrics of training,
    which a checkpoint carries to a run that resumes after the last step, and `validate` those of the final weights.

    Args:
        path: the file; by default `metrics.json` in the trainer's root directory.
    """

    def __init__(self, path: str | None = None) -> None:
        self.path = path
        self._step_of_weights = 0
        self._images: torch.Tensor | None = None  # number in the current or last validation or test
        self._earlier: Metrics = {}  # of training, logged before this process

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        # Outside of fit, Lightning leaves its own counters at 0. Loggers need the step too: at an earlier step than the
        # last one, TensorBoard drops the points of the fit, and W&B the new ones.
        self._step_of_weights = checkpoint[GLOBAL_STEP]
        if trainer.state.fn in ("validate", "test"):
            loop = checkpoint.get("loops", {}).get("fit_loop", {}).get("epoch_loop.state_dict", {})
            step = loop.get("_batches_that_stepped", self._step_of_weights)
            trainer.fit_loop.epoch_loop._batches_that_stepped = step
        where = f"{TRAINING_METRICS} in {trainer.ckpt_path}"
        self._earlier = records.decode(checkpoint.get(TRAINING_METRICS, {}), Metrics, where)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the metrics of training; every rank must call this."""
        checkpoint[TRAINING_METRICS] = self._of_training(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._images = None  # those of the fit's validations
        self._write(trainer, "fit", self._of_training(trainer))

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
            self._write(trainer, "validate", _numbers(trainer))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer, "test", _numbers(trainer))

    on_test_start = on_validation_start
    on_test_batch_end = on_validation_batch_end
    on_test_epoch_end = on_validation_epoch_end

    def _of_training(self, trainer: Trainer) -> Metrics:
        """The last metrics of training; the final weights are validated after the fit, in a section of their own."""
        metrics = {**self._earlier, **_numbers(trainer)}
        return {name: value for name, value in sorted(metrics.items()) if not name.startswith("val/")}

    def _write(self, trainer: Trainer, command: str, metrics: Metrics) -> None:
        if not trainer.is_global_zero or trainer.fast_dev_run or not metrics:
            return
        path = Path(self.path or Path(trainer.default_root_dir) / METRICS)
        # a finished run that is started again trains nothing: the section keeps the versions that trained it
        written = records.read_derived(path, dict[str, dict[str, Any]]) or {}
        if not trainer.callback_metrics and written.get(command, {}).get("metrics") == metrics:
            return
        section: Measured = {
            "global_step": max(trainer.global_step, self._step_of_weights),
            "n": None if self._images is None else int(self._images),
            "metrics": metrics,
            "versions": versions("torch", "lightning"),
            "machine": machine(),
            "commit": commit(),
        }
        merge_section(path, command, section)


def _numbers(trainer: Trainer) -> Metrics:
    return {name: _number(value) for name, value in sorted(trainer.callback_metrics.items())}


def _number(value: torch.Tensor) -> float | None:
    """A float; None for NaN and infinity, which JSON lacks."""
    return float(value) if torch.isfinite(value) else None
