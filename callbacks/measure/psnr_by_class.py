"""PSNR per class, next to the PSNR of filling every patch with its mean colour."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from artifacts.display import plain_console
from callbacks.measure.measurement import Measurement
from polytoken import records
from polytoken.metrics.grouped import GroupedMean
from polytoken.metrics.images import paint_patches, psnr, to_uint8
from polytoken.specs import Encoding


class PSNRByClass(Measurement):
    """Compares a tokenizer, class by class, with filling each patch of its grid with the mean colour.

    Logs ``psnr_painted`` over all images, and writes both PSNRs of each class in dB to ``psnr_by_class.json`` in the
    run's directory. A validate command prints them as a table; so does the validation at the end of a fit.
    """

    def begin(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._classes: dict[str, int] = trainer.datamodule.class_to_idx  # type: ignore[attr-defined]
        self._grid = pl_module.tokenizer.grid
        self._tokenizer = GroupedMean(len(self._classes)).to(pl_module.device)
        self._painted = GroupedMean(len(self._classes)).to(pl_module.device)

    def measure(self, images: Tensor, reconstruction: Tensor, labels: Tensor, encoding: Encoding) -> None:
        originals = to_uint8(images)
        self._tokenizer.update(psnr(to_uint8(reconstruction), originals), labels)
        self._painted.update(psnr(to_uint8(paint_patches(images, self._grid)), originals), labels)

    def results(self) -> dict[str, Tensor]:
        (tokenizer, tokenizer_overall), (painted, painted_overall) = self._tokenizer.compute(), self._painted.compute()
        tokenizer, painted = tokenizer.view(-1), painted.view(-1)  # torchmetrics makes a number of a single class
        pairs = {name: (tokenizer[index], painted[index]) for name, index in self._classes.items()}
        pairs["all images"] = (tokenizer_overall, painted_overall)
        self._rows = {name: (float(one), float(other)) for name, (one, other) in pairs.items() if not one.isnan()}
        return {"psnr_painted": painted_overall}

    def draw(self, trainer: pl.Trainer) -> None:
        path = Path(trainer.default_root_dir) / "psnr_by_class.json"
        rows = {name: {"tokenizer": one, "painted": other} for name, (one, other) in self._rows.items()}
        records.write(path, rows)
        if trainer.state.fn != TrainerFn.FITTING:
            self._print()

    def _print(self) -> None:
        from rich.table import Table

        table = Table("class", "tokenizer", "painted", "difference", title="PSNR in dB on validation images")
        for name, (tokenizer, painted) in self._rows.items():
            table.add_row(name, f"{tokenizer:.2f}", f"{painted:.2f}", f"{tokenizer - painted:+.2f}")
        plain_console().print(table)
