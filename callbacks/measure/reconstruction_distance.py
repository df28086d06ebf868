"""rFID, inception score and accuracy of reconstructions by any network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from artifacts.metrics import comparison_section, merge_section
from artifacts.run_files import METRICS
from callbacks.checkpoint.ema import EMA
from callbacks.measure.measurement import Measurement
from callbacks.measure.networks import load_measuring
from polytoken.errors import UserError
from polytoken.files import file_sha256
from polytoken.loading import GLOBAL_STEP
from polytoken.metrics.image_metrics import Metrics, Target, image_metrics
from polytoken.metrics.image_set import ImageSet
from polytoken.metrics.images import as_displayed, to_uint8
from polytoken.metrics.judge import Judge
from polytoken.specs import Encoding


class ReconstructionDistance(Measurement):
    """Fréchet distance of 8-bit reconstructions to their own originals, and their inception score.

    Logs ``rfid/inception``, ``rsfid/inception``, ``ris/inception``; for another network ``rfd/<name>``, and
    ``ris/<name>`` if it has classes. A judge knows the labels and takes images of any range: it adds
    ``judge_accuracy``, accuracy and score of the originals as ``…_originals``, which are the best to be expected, and
    ``rfd_raw/judge`` and ``ris_raw/judge`` of the decoder's output, neither clamped nor rounded.

    A validate or test command adds the section ``reconstruction`` to the run's ``metrics.json``, with the settings that
    the metrics depend on. Metrics of different networks do not compare with each other.

    Args:
        extractor: ``inception``, ``judge``, or a teacher such as ``dinov2_base``.
        weights: file of its weights; None is the one of ``make weights``. A judge's must be named.
    """

    def __init__(self, extractor: str = "inception", weights: str | None = None) -> None:
        self.extractor = extractor
        self.weights = weights
        self._step_of_weights = 0

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._step_of_weights = checkpoint[GLOBAL_STEP]

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Load the network now, so that a missing file stops the run before its first step.

        Raises:
            MissingFileError: if its file is missing.
            UserError: if training reads this network, or as :func:`load_extractor`.
        """
        network = load_measuring(self.extractor, self.weights, pl_module, trainer.strategy.root_device)
        self._judged = isinstance(network, Judge)
        self._network = replace(network, floats=True) if isinstance(network, Judge) else network
        self._rounded = as_displayed if self._judged else to_uint8

    def begin(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._reconstructions, self._originals, self._raw = (
            ImageSet.for_use(self._network, 0, keep_rows=False, use="reconstruction") for _ in range(3)
        )

    def rows(self, index: Tensor) -> Tensor:
        kept = super().rows(index)
        self._positions = index[kept]  # they determine the splits of the score
        return kept

    def measure(self, images: Tensor, reconstruction: Tensor, labels: Tensor, encoding: Encoding) -> None:
        if not bool(reconstruction.isfinite().all()):  # in 8 bits it would pass for a black one
            raise UserError("a reconstruction is not finite: these weights are broken, name an earlier checkpoint")
        self._reconstructions.add(self._rounded(reconstruction), labels, self._positions)
        self._originals.add(self._rounded(images), labels, self._positions)
        if self._judged:
            self._raw.add(reconstruction.float(), labels, self._positions)

    def results(self) -> dict[str, float | Tensor]:
        originals, found = self._originals.compute(), self._reconstructions.compute()
        self._target = Target.of_images(originals, "the images that were fed in")
        self._notes = [found.features.shortage] if found.features.shortage else []
        self._metrics: dict[str, Metrics] = {
            "reconstructions": image_metrics(found, self._target, "r"),
            "validation": image_metrics(originals, None, ""),
        }
        if not self._judged:
            return self._values(self._metrics["reconstructions"])
        name = self._network.name
        reconstructed, original = (self._values(metrics) for metrics in self._metrics.values())
        raw = self._values(image_metrics(self._raw.compute(), self._target, "r"))
        return {
            f"{name}_accuracy": float(reconstructed[f"recognised/{name}"]),
            f"{name}_accuracy_originals": float(original[f"recognised/{name}"]),
            f"rfd/{name}": reconstructed[f"rfd/{name}"],
            f"rfd_raw/{name}": raw[f"rfd/{name}"],
            f"ris/{name}": reconstructed[f"ris/{name}"],
            f"ris_raw/{name}": raw[f"ris/{name}"],
            f"ris/{name}_originals": original[f"is/{name}"],
        }

    def draw(self, trainer: pl.Trainer) -> None:
        """Add the section of metrics.json; not during a fit, whose metrics.json appears when it ends."""
        if trainer.fast_dev_run or trainer.state.fn == "fit":
            return
        checkpoint = trainer.ckpt_path
        settings = {
            "checkpoint": checkpoint,
            "step": max(trainer.global_step, self._step_of_weights),  # Lightning counts in a fit alone
            "checkpoint_sha256": file_sha256(checkpoint) if checkpoint and Path(checkpoint).is_file() else None,
            "averaged": any(
                isinstance(callback, EMA) and callback.has_average
                for callback in trainer.callbacks  # type: ignore[attr-defined]
            ),
            "precision": "float32",
            "metric_size": trainer.lightning_module.metric_size,
        }
        count = self._target.about["reference_n"]
        about = {"path": None, "n": count, "use": "reconstruction", "settings": settings}
        section = comparison_section(self._metrics, about, self._network, self._target, self._notes)
        path = Path(trainer.default_root_dir) / METRICS
        merge_section(path, "reconstruction", section, within=self._network.name)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.on_validation_end(trainer, pl_module)

    def _values(self, metrics: Metrics) -> dict[str, Tensor]:
        """Values as float64 tensors, since Lightning rounds Python floats to float32."""
        device = self._network.device
        return {
            name: torch.tensor(metric["value"], dtype=torch.float64, device=device)
            for name, metric in metrics.items()
            if metric["value"] is not None
        }
