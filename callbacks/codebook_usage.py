"""How much of each codebook the validation set uses."""

from __future__ import annotations

import lightning.pytorch as pl
from torch import Tensor

from callbacks.measurement import Measurement
from metrics.codebook import CodebookStatistics
from models.encoding import Encoding


class CodebookUsage(Measurement):
    """Logs, per sub-codebook i over the whole set: ``usage/i`` (share), ``perplexity/i`` and ``dead/i``."""

    def begin(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start counting anew; a continuous bottleneck has nothing to count."""
        spec = pl_module.tokenizer.spec
        self._statistics = CodebookStatistics(spec.codebook_sizes).to(pl_module.device) if spec else None

    def measure(self, images: Tensor, reconstruction: Tensor, labels: Tensor, encoding: Encoding) -> None:
        """Count the codes."""
        if self._statistics is not None and encoding.codes is not None:
            self._statistics.update(encoding.codes)

    def results(self) -> dict[str, float]:
        """Figures by name and codebook."""
        if self._statistics is None:
            return {}
        figures = self._statistics.compute()
        named = {"usage": figures.usage, "perplexity": figures.perplexity, "dead": figures.dead}
        return {f"{name}/{index}": float(value) for name, values in named.items() for index, value in enumerate(values)}
