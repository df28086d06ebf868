"""PSNR and SSIM of reconstructions."""

from __future__ import annotations

import lightning.pytorch as pl
from torch import Tensor
from torchmetrics import MeanMetric, Metric

from callbacks.measure.measurement import Measurement
from polytoken.metrics.images import psnr, psnr_unclamped, to_uint8
from polytoken.specs import Encoding


class ReconstructionMetrics(Measurement):
    """PSNR and SSIM, each averaged over images.

    ``psnr`` and ``ssim`` compare 8-bit images with a data range of 255. SSIM has an 11 × 11 Gaussian window of σ 1.5
    and includes the border, mirrored; skimage and Wang et al. leave out five pixels. ``psnr_raw`` and ``ssim_raw``
    compare the decoder's output, neither clamped nor rounded, with a data range of 2. ``code_bits`` is the size of an
    image's codes without entropy coding, or of its latents at 16 bits a value, and ``compression_ratio`` that of 8-bit
    RGB over it (iFSQ eqs. 11 to 13).
    """

    def begin(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        from torchmetrics.image import StructuralSimilarityIndexMeasure

        ssim = StructuralSimilarityIndexMeasure(data_range=255.0, sigma=1.5)
        raw = StructuralSimilarityIndexMeasure(data_range=2.0, sigma=1.5)
        metrics = {"psnr": MeanMetric(), "psnr_raw": MeanMetric(), "ssim": ssim, "ssim_raw": raw}
        tokenizer = pl_module.tokenizer
        self._sizes = {"code_bits": tokenizer.bits_per_image, "compression_ratio": tokenizer.compression_ratio}
        self._metrics: dict[str, Metric] = {name: metric.to(pl_module.device) for name, metric in metrics.items()}

    def measure(self, images: Tensor, reconstruction: Tensor, labels: Tensor, encoding: Encoding) -> None:
        originals, reconstructed = to_uint8(images), to_uint8(reconstruction)
        self._metrics["psnr"].update(psnr(reconstructed, originals))
        self._metrics["psnr_raw"].update(psnr_unclamped(reconstruction, images))
        self._metrics["ssim"].update(reconstructed.float(), originals.float())
        self._metrics["ssim_raw"].update(reconstruction.float(), images.float())

    def results(self) -> dict[str, Tensor | float]:
        measured = {name: metric.compute() for name, metric in self._metrics.items()}
        return {**measured, **self._sizes}
