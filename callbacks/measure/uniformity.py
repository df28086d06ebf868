"""Uniformity of the latents of a scalar quantizer."""

from __future__ import annotations

import lightning.pytorch as pl
import torch
from torch import Tensor

from callbacks.measure.measurement import Measurement
from polytoken.errors import UserError
from polytoken.metrics.uniformity import ScalarQuantizer, UniformityStatistics
from polytoken.specs import Encoding


class Uniformity(Measurement):
    """Logs ``ks``, ``rmse_uniform``, ``entropy_ratio`` and ``bins_hit`` of bounded latents, averaged over channels.

    They are those of iFSQ Fig. 2. The first two compare with U(−1, 1), exact to 1/4096; the others count the L levels
    of each channel. Works with every quantizer that has ``levels`` and ``digits`` (:class:`ScalarQuantizer`).
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Check the quantizer before the first step.

        Raises:
            UserError: if it is not a scalar quantizer.
        """
        quantizer = getattr(pl_module.tokenizer, "quantizer", None)
        if not isinstance(quantizer, ScalarQuantizer):
            raise UserError(
                f"callbacks.Uniformity measures scalar quantizers, and this tokenizer's is {type(quantizer).__name__}: "
                "leave the callback out"
            )
        self._quantizer = quantizer

    def begin(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._statistics = UniformityStatistics(self._quantizer.levels.flatten().tolist()).to(pl_module.device)

    def measure(self, images: Tensor, reconstruction: Tensor, labels: Tensor, encoding: Encoding) -> None:
        values = torch.cat(encoding.latents, dim=1).permute(0, 2, 3, 1).flatten(0, 2)
        self._statistics.update(values, self._quantizer.digits(values))

    def results(self) -> dict[str, float]:
        return self._statistics.compute()._asdict()
