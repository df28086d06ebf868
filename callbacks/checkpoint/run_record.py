"""What a run was started with: as files beside it, and inside each checkpoint."""

from itertools import count
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from polytoken.loading import SHARDED

KEY = "model_config"


class RunRecord(Callback):
    """Keeps the configuration of a run; the command line builds it.

    A first fit writes `config.yaml`, each one that resumes `config_resume_1.yaml`, `config_resume_2.yaml` ...; another
    command writes `config_<command>.yaml`, over its own last one. Each checkpoint carries the resolved model section.

    Args:
        directory: The run's directory.
        command: fit, validate, test or predict.
        resumes: Whether it goes on from a checkpoint.
        config: The resolved configuration as YAML text.
        model: Its model section as plain data (class_path and init_args).
    """

    def __init__(self, directory: Path, command: str, resumes: bool, config: str, model: dict[str, Any]) -> None:
        self.directory = directory
        self.command = command
        self.resumes = resumes
        self.config = config
        self.model = model

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the configuration, once a start: the validation that ends a fit is no start of its own."""
        if trainer.is_global_zero and not trainer.fast_dev_run and stage == self.command:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._file().write_text(self.config, encoding="utf-8")

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put the model section into the checkpoint."""
        checkpoint[KEY] = self.model

    def _file(self) -> Path:
        if self.command != "fit":
            return self.directory / f"config_{self.command}.yaml"
        if not self.resumes:
            return self.directory / "config.yaml"
        paths = (self.directory / f"config_resume_{number}.yaml" for number in count(1))
        return next(path for path in paths if not path.exists())


def recorded_model(checkpoint: Path) -> dict[str, Any] | None:
    """The model section a checkpoint was written with, or None if it has none; tensors stay on disk."""
    # A sharded checkpoint is a directory that keeps everything but the tensors in meta.pt.
    file = checkpoint / SHARDED if checkpoint.is_dir() else checkpoint
    return torch.load(file, mmap=True, weights_only=True, map_location="cpu").get(KEY)


def differences(old: Any, new: Any, key: str = "model") -> list[tuple[str, Any, Any]]:
    """The keys under which two sections differ, with both values; `<not set>` stands for a missing key."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = list(dict.fromkeys([*old, *new]))
        pairs = [differences(old.get(k, "<not set>"), new.get(k, "<not set>"), f"{key}.{k}") for k in keys]
        return [difference for pair in pairs for difference in pair]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = [differences(a, b, f"{key}[{i}]") for i, (a, b) in enumerate(zip(old, new, strict=True))]
        return [difference for pair in pairs for difference in pair]
    return [] if old == new else [(key, old, new)]
