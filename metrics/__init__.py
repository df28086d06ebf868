"""What a run is judged by; torchmetrics does the sums over batches and ranks."""

from metrics.codebook import CodebookFigures, CodebookStatistics, JointCodeStatistics, RecentUsage
from metrics.frechet import FeatureStatistics, Gaussian, frechet_distance
from metrics.gather import gather_rows
from metrics.grouped import GroupedMean
from metrics.images import as_displayed, paint_patches, psnr, psnr_unclamped, to_uint8
from metrics.inception_score import InceptionScore
from metrics.similarity import SubspaceCosines, cknna, linear_cka

__all__ = [
    "CodebookFigures",
    "CodebookStatistics",
    "FeatureStatistics",
    "Gaussian",
    "GroupedMean",
    "InceptionScore",
    "JointCodeStatistics",
    "RecentUsage",
    "SubspaceCosines",
    "as_displayed",
    "cknna",
    "frechet_distance",
    "gather_rows",
    "linear_cka",
    "paint_patches",
    "psnr",
    "psnr_unclamped",
    "to_uint8",
]
