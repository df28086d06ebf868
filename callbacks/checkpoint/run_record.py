"""Configuration of a run, as files in its directory and inside each checkpoint, and the marker of its end."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from artifacts.completion import Origin, Producer, begin, finish
from artifacts.lock import check_in_place
from polytoken.files import write_text
from polytoken.loading import MODEL_CONFIG, read_metadata

FIT = "config.yaml"  # configuration of a run's first fit
NOT_SET = "<not set>"


class RunRecord(Callback):
    """Writes the configuration of a run; cli.py adds this callback to each command.

    The first fit writes `config.yaml`, and a fit that resumes `config_resume_1.yaml`, `config_resume_2.yaml` … Another
    command overwrites `config_<command>.yaml`. Each checkpoint holds the resolved model section. A fit or predict
    removes the marker of a finished stage (`artifacts.completion`) before its first batch, and writes it at its end.

    Args:
        directory: The run's directory.
        command: fit, validate, test or predict.
        resumes: Whether the command reads a checkpoint.
        config: The resolved configuration as YAML text.
        model: Its model section as plain data (class_path and init_args).
        origin: What the run is made from.
    """

    def __init__(
        self,
        directory: Path,
        command: str,
        resumes: bool,
        config: str,
        model: dict[str, Any],
        origin: Origin | None = None,
    ) -> None:
        self.directory = directory
        self.command = command
        self.resumes = resumes
        self.config = config
        self.model = model
        self.origin = origin

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the configuration, but not a second time for the validation that ends a fit."""
        if trainer.is_global_zero and not trainer.fast_dev_run and stage == self.command:
            write_text(self._file(), self.config)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove the marker of a finished fit: everything that refuses a command has been checked before."""
        if trainer.is_global_zero and not trainer.fast_dev_run:
            begin(self.directory)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove the marker of a finished prediction; that of a fit in the same directory stays."""
        if trainer.is_global_zero and not trainer.fast_dev_run and not (self.directory / FIT).exists():
            begin(self.directory)

    def finish(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Mark the stage as finished, with the files of the module and of the callbacks that later stages read."""
        if not trainer.is_global_zero or trainer.fast_dev_run or trainer.interrupted:
            return
        check_in_place(self.directory)
        producers = [part for part in (pl_module, *trainer.callbacks) if isinstance(part, Producer)]
        files = [file for producer in producers for file in producer.deliver()]
        step = trainer.global_step if self.command == "fit" else None
        finish(self.directory, self.command, self.config, files, step, self.origin)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the model section."""
        checkpoint[MODEL_CONFIG] = self.model

    def _file(self) -> Path:
        if self.command != "fit":
            return self.directory / f"config_{self.command}.yaml"
        if not self.resumes:
            return self.directory / FIT
        paths = (self.directory / f"config_resume_{number}.yaml" for number in count(1))
        return next(path for path in paths if not path.exists())


def recorded_model(checkpoint: Path) -> dict[str, Any] | None:
    """The model section that a checkpoint was written with, or None if it has none."""
    return read_metadata(checkpoint).get(MODEL_CONFIG)


def differences(old: Any, new: Any, key: str = "model") -> list[tuple[str, Any, Any]]:
    """Keys under which two sections differ, with both values; a missing key has the value `<not set>`.

    A missing key equals null: an older version did not know the setting, whose default is null.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        keys = list(dict.fromkeys([*old, *new]))
        pairs = [differences(old.get(k, NOT_SET), new.get(k, NOT_SET), f"{key}.{k}") for k in keys]
        return [difference for pair in pairs for difference in pair]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = [differences(a, b, f"{key}[{i}]") for i, (a, b) in enumerate(zip(old, new, strict=True))]
        return [difference for pair in pairs for difference in pair]
    unset = all(value is None or value == NOT_SET for value in (old, new))
    return [] if old == new or unset else [(key, old, new)]
