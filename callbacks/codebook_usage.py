"""How much of each codebook the validation set uses."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from torch import Tensor

from metrics.codebook import CodebookStatistics


class CodebookUsage(pl.Callback):
    """Logs, per sub-codebook i over the whole validation set: ``usage/i`` (share), ``perplexity/i`` and ``dead/i``."""

    def __init__(self) -> None:
        self._statistics: CodebookStatistics | None = None

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start counting anew."""
        spec = pl_module.tokenizer.spec
        self._statistics = CodebookStatistics(spec.codebook_sizes).to(pl_module.device) if spec else None

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: dict[str, Any],
        batch: dict[str, Tensor],
        *_: Any,
    ) -> None:
        """Count one batch, without the rows that pad it."""
        if self._statistics is not None:
            self._statistics.update(outputs["encoding"].codes[batch["index"] >= 0])

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the figures of all ranks together."""
        if self._statistics is None:
            return
        for name, values in self._statistics.compute().items():
            for index, value in enumerate(values):
                pl_module.log(f"val/{name}/{index}", value, rank_zero_only=True)

    on_test_start = on_validation_start
    on_test_batch_end = on_validation_batch_end
    on_test_epoch_end = on_validation_epoch_end
