"""Similarity of a generator's blocks to its output and to a teacher over normalised depth (iFSQ Figs. 6 and 7)."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor

from artifacts.run_files import CURVES, LAYERS, Layers
from callbacks.measure.measurement import measured_images, stride_of
from callbacks.measure.plots import new_plot, publish, render
from datamodules.images import ImageDataModule
from polytoken import records
from polytoken.errors import UserError
from polytoken.metrics.layers import LayerCurves, LayerStatistics
from polytoken.precision import full_precision
from polytoken.teachers import Teacher

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class LayerAnalysis(pl.Callback):
    """Logs STS, NTS, CKNNA and linear CKA of every block of a generator, on validation images.

    Hidden states are those of teacher forcing on the images' own tokens, given their class; for a flow at one time.
    CKNNA and CKA compare their mean over positions with the mean of the teacher's patches. Logs
    ``val/layers/<curve>/<block>``, ``val/layers/correlation`` (Pearson, of NTS and CKNNA) and ``val/layers/peak``, the
    normalised depth of the greatest CKNNA. Writes ``layers.json``, with n and k, and ``layers.png``. CKNNA compares
    only at equal k and equal numbers of images.

    Args:
        teacher: the network that the blocks are compared with.
        max_images: upper bound of the images, evenly spread over the set; memory grows with their square.
        k: neighbours of CKNNA.
        time: time of a flow in (0, 1); 1 are data.
        probe: also fit a linear probe for the class to half of the images, given the null class, and test the rest.
    """

    def __init__(
        self, teacher: Teacher, max_images: int = 2048, k: int = 10, time: float = 0.5, probe: bool = False
    ) -> None:
        if k < 2 or max_images <= max(k, 3):
            raise UserError(
                f"LayerAnalysis: k is {k} and max_images {max_images}; CKNNA needs a k of 2 or more, and more images "
                f"than {max(k, 3)}."
            )
        if not 0 < time < 1:
            raise UserError(f"LayerAnalysis: time is {time}; it must lie between 0, noise, and 1, data.")
        self.teacher = teacher
        self.max_images = max_images
        self.k = k
        self.time = time
        self.probe = probe

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Check data and teacher before the first step.

        Raises:
            MissingFileError: if the teacher's file is missing.
            UserError: if the batches hold no images.
        """
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, ImageDataModule):
            raise UserError(
                f"LayerAnalysis shows a teacher the images, and {type(data).__name__} reads none: set data.class_path "
                "to datamodules.OnlineTokenDataModule, or run `python -m commands.layers` on the finished run"
            )
        self.teacher.check()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.teacher.prepare(pl_module.device)
        self._stride = stride_of(trainer, self.max_images)
        images = measured_images(trainer, self._stride)
        if images <= max(self.k, 3):
            raise UserError(
                f"LayerAnalysis measures {images} images, and CKNNA with k = {self.k} needs more than "
                f"{max(self.k, 3)}: raise trainer.limit_val_batches or max_images, or lower k"
            )
        self._statistics = LayerStatistics(pl_module.generator.depth, pl_module.device, self.k)
        self._first = trainer.global_rank * self.max_images  # the ranks draw different noise

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: dict[str, Tensor], *_: Any
    ) -> None:
        kept = (batch["index"] >= 0) & (batch["index"] % self._stride == 0)
        # a rank without rows computes too: sharded weights make the other ranks wait for it
        rows = kept if (some := bool(kept.any())) else ~kept
        batch = {name: value[rows] for name, value in batch.items()}
        generator, tokens, labels = pl_module.generator, pl_module.tokens_of(batch), batch["label"]
        null = torch.full_like(labels, generator.num_classes)
        with full_precision(pl_module.device):
            hidden = generator.states(tokens, labels, self.time, self._first)
            unlabelled = generator.states(tokens, null, self.time, self._first) if self.probe else {}
            if not some:
                return
            (features,) = self.teacher.features(batch["image"], full_precision=True)
        self._first += len(labels)
        self._statistics.update(hidden, features.patches.mean((1, 2)))
        if self.probe:
            self._statistics.update_probe(unlabelled, labels)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Gather the ranks and log."""
        curves = self._statistics.compute()
        time = self.time if pl_module.generator.models == "latents" else None
        alignment = getattr(pl_module, "alignment", None)
        aligned = None if alignment is None else alignment.tap
        self._record = layers_record(curves, self.teacher.identity, "validation", time, aligned)
        for name, value in layer_metrics(self._record).items():
            pl_module.log(f"val/{name}", torch.nan if value is None else value, rank_zero_only=True)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the file and the plot."""
        if trainer.is_global_zero:
            publish(trainer, "layers", draw_layers({"": self._record}))
            records.write(Path(trainer.default_root_dir) / LAYERS, self._record)


def layers_record(curves: LayerCurves, teacher: str, source: str, time: float | None, aligned: int | None) -> Layers:
    """Content of ``layers.json``.

    Args:
        curves: the measurement.
        teacher: its name and digest.
        source: of the images: validation or generated.
        time: of a flow, otherwise None.
        aligned: block that training aligned with a teacher, if one.
    """
    record: Layers = {
        "sts": _plain(curves.sts),
        "nts": _plain(curves.nts),
        "cknna": _plain(curves.cknna),
        "cka": _plain(curves.cka),
        "correlation": _plain([curves.correlation])[0],
        "n": curves.images,
        "positions": curves.positions,
        "k": curves.k,
        "unit_rows": curves.unit_rows,
        "teacher": teacher,
        "source": source,
        "time": time,
        "aligned": aligned,
    }
    if curves.probe is not None:
        record["probe"] = [one.value for one in curves.probe]
        record["probe_standard_error"] = [one.standard_error for one in curves.probe]
    return record


def layer_metrics(record: Layers) -> dict[str, float | None]:
    """Metrics by name: ``layers/<curve>/<block>``, ``layers/correlation``, ``layers/peak`` (see LayerAnalysis)."""
    metrics: dict[str, float | None] = {"layers/correlation": record["correlation"]}
    for curve in CURVES:
        values: list[float | None] = record.get(curve) or []  # type: ignore[assignment]
        metrics |= {f"layers/{curve}/{block}": value for block, value in enumerate(values, 1)}
    known = {block: value for block, value in enumerate(record["cknna"], 1) if value is not None}
    metrics["layers/peak"] = max(known, key=known.__getitem__) / len(record["cknna"]) if known else None
    return metrics


def draw_layers(found: Mapping[str, Layers]) -> np.ndarray:
    """Plot the curves over normalised depth, and CKNNA over NTS with its linear fit; a row a generator.

    Args:
        found: measurements by the name of the generator.

    Returns:
        Pixels uint8 (H, W, 3).
    """
    plot, axes = new_plot(columns=2, rows=len(found))
    for (over_depth, scatter), (name, record) in zip(axes, found.items(), strict=True):
        depth = len(record["sts"])
        for curve, label in CURVES.items():
            values: Any = record.get(curve)
            if values:
                places = [block / depth for block in range(1, depth + 1)]
                over_depth.plot(places, _drawn(values), marker="o", markersize=3, label=label)
        if record["aligned"] is not None:
            over_depth.axvline(record["aligned"] / depth, color="grey", linestyle="--", linewidth=1, label="aligned")
        over_depth.set(xlabel="block over depth", ylim=(-0.1, 1.05), xlim=(0, 1.03))
        over_depth.set_title("  ".join(filter(None, [name, _about(record)])), fontsize=9)
        over_depth.legend(fontsize=8)
        over_depth.grid(alpha=0.3)
        _draw_scatter(scatter, record)
    return render(plot)


def _draw_scatter(panel: Axes, record: Layers) -> None:
    pairs = [pair for pair in zip(record["nts"], record["cknna"], strict=True) if None not in pair]
    depth = len(record["nts"])
    shades = np.linspace(0, 1, depth + 1)[1:][: len(pairs)]
    points = np.array(pairs, dtype=float).reshape(-1, 2)
    dots = panel.scatter(points[:, 0], points[:, 1], c=shades, cmap="viridis", vmin=0, vmax=1, s=25)
    panel.figure.colorbar(dots, ax=panel, shrink=0.8, label="block over depth")
    r = record["correlation"]
    if r is not None:
        slope, offset = np.polyfit(points[:, 0], points[:, 1], 1)
        ends = np.array([points[:, 0].min(), points[:, 0].max()])
        panel.plot(ends, slope * ends + offset, color="grey", linewidth=1)
    panel.set(xlabel="NTS", ylabel=f"CKNNA (k = {record['k']})")
    panel.set_title("r is not defined" if r is None else f"Pearson r = {r:.2f} over {depth} blocks", fontsize=9)
    panel.grid(alpha=0.3)


def _about(record: Layers) -> str:
    time = "" if record["time"] is None else f", t = {record['time']:g}"
    return f"n = {record['n']} {record['source']}, k = {record['k']}{time}, {record['teacher'].split()[0]}"


def _plain(values: list[float]) -> list[float | None]:
    """JSON has no NaN."""
    return [value if isfinite(value) else None for value in values]


def _drawn(values: list[float | None]) -> list[float]:
    return [float("nan") if value is None else value for value in values]
