"""What a run is judged by; torchmetrics does the sums over batches and ranks."""

from metrics.codebook import CodebookStatistics
from metrics.grouped import GroupedMean
from metrics.images import paint_patches, psnr, to_uint8

__all__ = ["CodebookStatistics", "GroupedMean", "paint_patches", "psnr", "to_uint8"]
