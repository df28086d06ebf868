"""What a network makes of reconstructions, beside the images that were fed in: rFID, rIS."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
from torch import Tensor

from artifacts.metrics import comparison, merge_section
from callbacks.checkpoint.ema import EMA
from callbacks.measure.measurement import Measurement
from polytoken.errors import UserError
from polytoken.files import file_sha256
from polytoken.metrics.extractors import load_extractor
from polytoken.metrics.generation import Figures, Target, begin, figures_of
from polytoken.metrics.images import to_uint8
from polytoken.specs import Encoding


class ReconstructionDistance(Measurement):
    """Fréchet distance of 8-bit reconstructions to the very images that were fed in, and their inception score.

    Logs ``rfid/inception``, ``rsfid/inception``, ``ris/inception``; of another network ``rfd/<name>``, and
    ``ris/<name>`` and ``recognised/<name>`` if it knows classes. The section ``reconstruction`` of the run's
    ``metrics.json`` says what they depend on, and the originals' own score, the best to be expected.

    Args:
        extractor: ``inception``, ``judge``, or a teacher: ``dinov2_base`` …
        weights: its file; None takes that of ``make weights``. A judge's must be named.
    """

    def __init__(self, extractor: str = "inception", weights: str | None = None) -> None:
        self.extractor = extractor
        self.weights = weights

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Load the network now, so that a missing file stops the run before its first step."""
        weights = None if self.weights is None else Path(self.weights)
        self._network = load_extractor(self.extractor, weights, trainer.strategy.root_device)

    def begin(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start measuring anew."""
        self._reconstructions, self._originals = (
            begin(self._network, 0, keep_rows=False, use="reconstruction") for _ in range(2)
        )

    def rows(self, index: Tensor) -> Tensor:
        """All but rows that only pad; the splits of the score go by their positions."""
        kept = super().rows(index)
        self._positions = index[kept]
        return kept

    def measure(self, images: Tensor, reconstruction: Tensor, labels: Tensor, encoding: Encoding) -> None:
        """Add images and reconstructions, both as a PNG would hold them.

        Raises:
            ValueError: if a reconstruction is not finite.
        """
        if not bool(reconstruction.isfinite().all()):  # in 8 bits it would pass for a black one
            raise UserError("a reconstruction is not finite: these weights are broken, name an earlier checkpoint")
        self._reconstructions.add(to_uint8(reconstruction), labels, self._positions)
        self._originals.add(to_uint8(images), labels, self._positions)

    def results(self) -> dict[str, float]:
        """Distances and score of the reconstructions."""
        originals, found = self._originals.compute(), self._reconstructions.compute()
        self._target = Target.of_images(originals, "the images that were fed in")
        self._notes = [found.features.shortage] if found.features.shortage else []
        self._figures: dict[str, Figures] = {
            "reconstructions": figures_of(found, self._target, "r"),
            "validation": figures_of(originals, None, ""),
        }
        figures = self._figures["reconstructions"]
        return {name: figure["value"] for name, figure in figures.items() if figure["value"] is not None}

    def draw(self, trainer: pl.Trainer) -> None:
        """Write the figures with what they depend on, beside those of other networks."""
        if trainer.fast_dev_run or trainer.sanity_checking:
            return
        count = self._target.about["reference_n"]
        # Lightning keeps the file that a fit went on from; the weights that it measures are others
        checkpoint = None if trainer.state.fn == "fit" else trainer.ckpt_path
        settings = {
            "checkpoint": checkpoint,
            "checkpoint_sha256": file_sha256(checkpoint) if checkpoint and Path(checkpoint).is_file() else None,
            "averaged": any(
                isinstance(callback, EMA) and callback.has_average
                for callback in trainer.callbacks  # type: ignore[attr-defined]
            ),
            "precision": str(trainer.precision),
        }
        about = {"path": None, "n": count, "use": "reconstruction", "settings": settings}
        section = comparison(self._figures, about, self._network, self._target, self._notes)
        path = Path(trainer.default_root_dir) / "metrics.json"
        merge_section(path, "reconstruction", section, within=self._network.name)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write them after a test as well."""
        self.on_validation_end(trainer, pl_module)
