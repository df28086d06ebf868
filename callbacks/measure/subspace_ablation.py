"""What each subspace contributes: reconstructions without it, and from it alone (SSQ Fig. 5, FQGAN Fig. 3)."""

from __future__ import annotations

import lightning.pytorch as pl
from torch import Tensor
from torchmetrics import MeanMetric

from callbacks.measure.measurement import SubsetMeasurement
from callbacks.measure.plots import image_table, publish
from polytoken.classifier import SmallClassifier
from polytoken.metrics.frechet import FeatureStatistics, frechet_distance
from polytoken.metrics.gather import gather_rows
from polytoken.metrics.images import as_displayed, psnr, to_uint8
from polytoken.specs import Encoding
from polytoken.subspaces import keep_subspaces

ORIGINAL = "original"


class SubspaceAblation(SubsetMeasurement):
    """Decodes with some subspaces set to zero: each one left out, and each one alone.

    Logs ``ablation/psnr_<column>``, and with a judge ``ablation/rfd/judge_<column>``, for the columns ``all``,
    ``without_i`` and ``only_i``; the decoder is asked once for columns that are the same thing. Writes
    ``subspaces.png``: a row an image, the original first.

    Args:
        judge: the judge's safetensors (``make teacher`` trains it); None leaves its distance out.
        max_images: the most images, evenly spread over the set; each is decoded up to 2k + 1 times.
        rows: images in the picture.
        pixels: least height of an image in the picture.
    """

    def __init__(self, judge: str | None = None, max_images: int = 2048, rows: int = 8, pixels: int = 96) -> None:
        super().__init__(max_images)
        self.judge = judge
        self.num_rows = rows
        self.pixels = pixels
        self._judge: SmallClassifier | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Load the judge now, so that a missing file stops the run before its first step."""
        self._judge = SmallClassifier.load(self.judge) if self.judge else None

    def begin(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start measuring anew."""
        super().begin(trainer, pl_module)
        self._decode = pl_module.tokenizer.decode
        self._device = pl_module.device
        self._precision = trainer.precision_plugin
        # every column exists on every rank from the start: a rank without images takes part in the sums as well
        self._columns = columns(len(pl_module.tokenizer.subspace_channels))
        self._shown: dict[str, list[Tensor]] = {name: [] for name in (ORIGINAL, *self._columns)}
        self._psnr = {name: MeanMetric().to(pl_module.device) for name in self._columns}
        self._features: dict[str, FeatureStatistics] = {}
        self._wanted = -(-self.num_rows // trainer.world_size)
        if self._judge is not None:
            self._judge.to(pl_module.device)
            width = self._judge.widths[-1]
            self._features = {name: FeatureStatistics(width).to(pl_module.device) for name in self._shown}

    def measure(self, images: Tensor, reconstruction: Tensor, labels: Tensor, encoding: Encoding) -> None:
        """Decode without some of the subspaces."""
        decoded: dict[tuple[int, ...], Tensor] = {tuple(range(len(encoding.subspaces))): reconstruction}
        self._add(ORIGINAL, images, images)
        for name, kept in self._columns.items():
            if kept not in decoded:
                with self._precision.val_step_context():
                    decoded[kept] = self._decode(
                        keep_subspaces(encoding.subspaces, kept).to(encoding.quantized.dtype)
                    ).image.float()
            self._add(name, decoded[kept], images)

    def results(self) -> dict[str, Tensor]:
        """PSNR of every column, and its Fréchet distance to the originals."""
        results = {f"ablation/psnr_{name}": metric.compute() for name, metric in self._psnr.items()}
        statistics = {name: features.compute() for name, features in self._features.items()}
        for name in self._columns if statistics else ():
            distance = frechet_distance(statistics[name], statistics[ORIGINAL])
            results[f"ablation/rfd/judge_{name}"] = distance
        self._rows = list(
            zip(*(gather_rows(images, self._device).cpu() for images in self._shown.values()), strict=True)
        )
        return results

    def draw(self, trainer: pl.Trainer) -> None:
        """Write the picture."""
        if self._columns:
            titles = [name.replace("_", " ") for name in self._shown]
            rows = self._rows[: self.num_rows]
            publish(trainer, "subspaces", image_table(rows, column_titles=titles, pixels=self.pixels))

    def _add(self, name: str, decoded: Tensor, images: Tensor) -> None:
        shown = self._shown[name]
        shown.append(to_uint8(decoded[: max(0, self._wanted - sum(map(len, shown)))]))
        if name in self._psnr:
            self._psnr[name].update(psnr(to_uint8(decoded), to_uint8(images)))
        if self._judge is not None:
            self._features[name].update(self._judge.embed(as_displayed(decoded)))


def columns(num_parts: int) -> dict[str, tuple[int, ...]]:
    """Name of each column, and the subspaces it keeps."""
    everything = range(num_parts)
    without = {f"without_{left_out}": tuple(i for i in everything if i != left_out) for left_out in everything}
    if not num_parts:
        return {}
    return {"all": tuple(everything), **without, **{f"only_{index}": (index,) for index in everything}}
