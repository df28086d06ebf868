"""The numbers of a run in one file."""

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from polytoken.files import write_text
from polytoken.metrics.extractor import Extractor
from polytoken.metrics.generation import Figures, Target

PACKAGES = ("torch", "lightning", "torchmetrics", "torch-fidelity")  # whose versions figures depend on


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
        sections = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        sections[command] = {
            "global_step": max(trainer.global_step, self._step_of_weights),
            "n": None if self._images is None else int(self._images),
            "metrics": {name: _number(value) for name, value in sorted(trainer.callback_metrics.items())},
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "lightning": lightning.__version__,
            },
            "machine": machine(),
            "commit": commit(),
        }
        write_json(path, sections)


def _number(value: torch.Tensor) -> float | None:
    """A float; JSON knows no NaN and no infinity, so these are null."""
    return float(value) if torch.isfinite(value) else None


def record_of(
    figures: dict[str, Figures], samples: dict[str, Any], extractor: Extractor, target: Target, notes: Sequence[str]
) -> dict[str, Any]:
    """A section of ``metrics.json`` on sets of images: figures, and all that they depend on.

    Args:
        figures: by set: ``samples``, and what stands beside them.
        samples: what they are and how they were made.
        extractor: the network.
        target: what the samples were compared with.
        notes: what a reader should know, in sentences.
    """
    return {
        "figures": figures,
        "samples": samples,
        "extractor": {"name": extractor.name, "sha256": extractor.sha256, "resize": extractor.resize},
        "reference": target.about,
        "notes": list(notes),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "machine": machine(),
        "commit": commit(),
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file so that a reader sees the old one or the new one, never half of it."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def machine() -> str:
    """What this process runs on, in words: the system, its cores, and its GPUs."""
    words = [f"{platform.system()} {platform.machine()}", f"{os.cpu_count()} cores"]
    if torch.cuda.is_available():
        words.append(f"{torch.cuda.device_count()} × {torch.cuda.get_device_name()}")
    return ", ".join(words)


def commit() -> str | None:
    """The commit this code stands at, with `-dirty` if tracked files were changed; None outside of git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
