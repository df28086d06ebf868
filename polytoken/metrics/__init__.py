"""Metrics of images, codes and features.

Accumulators are torchmetrics' Metric, which sums over batches and ranks. Modules of this package may import
torchmetrics, torch-fidelity and scikit-learn, which the extra `suite` installs; `import polytoken` imports none of
them. Without the suite, the import of this package raises `MissingPackageError`.
"""

from polytoken.errors import MissingPackageError

try:
    from polytoken.metrics.codebook import CodebookMetrics, CodebookStatistics, JointCodeStatistics, RecentUsage
    from polytoken.metrics.frechet import FeatureStatistics, Gaussian, frechet_distance
    from polytoken.metrics.gather import gather_rows
    from polytoken.metrics.grouped import GroupedMean
    from polytoken.metrics.images import as_displayed, paint_patches, psnr, psnr_unclamped, to_uint8
    from polytoken.metrics.inception_score import InceptionScore
    from polytoken.metrics.similarity import SubspaceCosines, cknna, linear_cka
except ModuleNotFoundError as error:
    raise MissingPackageError.of("polytoken.metrics", error) from error

__all__ = [
    "CodebookMetrics",
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
