"""What a run is judged by; torchmetrics does the sums over batches and ranks."""

from polytoken.metrics.codebook import CodebookFigures, CodebookStatistics, JointCodeStatistics, RecentUsage
from polytoken.metrics.frechet import FeatureStatistics, Gaussian, frechet_distance
from polytoken.metrics.gather import gather_rows
from polytoken.metrics.grouped import GroupedMean
from polytoken.metrics.images import as_displayed, paint_patches, psnr, psnr_unclamped, to_uint8
from polytoken.metrics.inception_score import InceptionScore
from polytoken.metrics.similarity import SubspaceCosines, cknna, linear_cka

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
