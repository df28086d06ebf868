"""PSNR of each class beside the PSNR of painting every patch in its mean colour."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from metrics.grouped import GroupedMean
from metrics.images import paint_patches, psnr, to_uint8


class PSNRByClass(pl.Callback):
    """Compares a tokenizer, class by class, with painting each f × f patch in its mean colour.

    Logs ``val/psnr_painted`` (over all images) after each validation, and writes ``psnr_by_class.json`` into the run's
    directory: for each class both figures in dB. A table is printed when validation was asked for by itself, or at
    the end of fit.
    """

    def __init__(self) -> None:
        self._tokenizer: GroupedMean | None = None
        self._painted: GroupedMean | None = None
        self._rows: dict[str, dict[str, float]] = {}

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start measuring anew."""
        num_classes = len(trainer.datamodule.class_to_idx)  # type: ignore[attr-defined]
        self._tokenizer = GroupedMean(num_classes).to(pl_module.device)
        self._painted = GroupedMean(num_classes).to(pl_module.device)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: dict[str, Any],
        batch: dict[str, Tensor],
        *_: Any,
    ) -> None:
        """Measure one batch, without the rows that pad it."""
        assert self._tokenizer is not None and self._painted is not None
        real = batch["index"] >= 0
        images, labels = batch["image"][real], batch["label"][real]
        originals = to_uint8(images)
        painted = to_uint8(paint_patches(images, pl_module.tokenizer.downsampling))
        self._tokenizer.update(psnr(to_uint8(outputs["reconstruction"][real]), originals), labels)
        self._painted.update(psnr(painted, originals), labels)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log and write the figures of all ranks together."""
        assert self._tokenizer is not None and self._painted is not None
        tokenizer, painted = self._tokenizer.compute(), self._painted.compute()
        overall = self._painted.sums.sum() / self._painted.counts.sum()
        pl_module.log("val/psnr_painted", overall, rank_zero_only=True)
        self._rows = {
            name: {"tokenizer": float(tokenizer[index]), "painted": float(painted[index])}
            for name, index in trainer.datamodule.class_to_idx.items()  # type: ignore[attr-defined]
        }
        total = float(self._tokenizer.sums.sum() / self._tokenizer.counts.sum())
        self._rows["all images"] = {"tokenizer": total, "painted": float(overall)}
        if trainer.is_global_zero:
            path = Path(trainer.default_root_dir) / "psnr_by_class.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(self._rows, indent=2) + "\n")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print, when validation was the command."""
        if trainer.state.fn != TrainerFn.FITTING:
            self._print(trainer)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the last validation's figures."""
        self._print(trainer)

    def _print(self, trainer: pl.Trainer) -> None:
        if not trainer.is_global_zero or not self._rows:
            return
        from rich.console import Console
        from rich.table import Table

        table = Table("class", "tokenizer", "painted", "difference", title="PSNR in dB on validation images")
        for name, row in self._rows.items():
            figures = (row["tokenizer"], row["painted"], row["tokenizer"] - row["painted"])
            table.add_row(name, *(f"{figure:.2f}" for figure in figures))
        Console().print(table)
