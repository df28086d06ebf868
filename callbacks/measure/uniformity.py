"""How evenly the latents of a finite scalar quantizer fill their levels."""

from __future__ import annotations

import lightning.pytorch as pl
import torch
from torch import Tensor

from callbacks.measure.measurement import Measurement
from polytoken.errors import UserError
from polytoken.metrics.uniformity import UniformityStatistics
from polytoken.quantizers import FiniteScalarQuantizer
from polytoken.quantizers.finite_scalar import vectors_to_digits
from polytoken.specs import Encoding


class Uniformity(Measurement):
    """Logs ``ks``, ``rmse_uniform``, ``entropy_ratio`` and ``bins_hit`` of the bounded latents, means over channels.

    The first two compare with U(−1, 1), correct to 1/4096; the others count the L levels of each channel.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse a tokenizer that rounds nothing, before the first step.

        Raises:
            ValueError: if its bottleneck is no FiniteScalarQuantizer.
        """
        quantizer = getattr(pl_module.tokenizer, "quantizer", None)
        if not isinstance(quantizer, FiniteScalarQuantizer):
            raise UserError(
                f"callbacks.Uniformity measures a FiniteScalarQuantizer, and this tokenizer's bottleneck is "
                f"{type(quantizer).__name__}: leave the callback out"
            )
        self._quantizer = quantizer

    def begin(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start counting anew."""
        self._statistics = UniformityStatistics(self._quantizer.levels.flatten().tolist()).to(pl_module.device)

    def measure(self, images: Tensor, reconstruction: Tensor, labels: Tensor, encoding: Encoding) -> None:
        """Count the latents and their levels."""
        values = torch.cat(encoding.latents, dim=1).permute(0, 2, 3, 1).flatten(0, 2)
        levels = self._quantizer.levels.flatten()
        self._statistics.update(values, vectors_to_digits(values, levels, self._quantizer.cells))

    def results(self) -> dict[str, float]:
        """The four figures by name."""
        return self._statistics.compute()._asdict()
