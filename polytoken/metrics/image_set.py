"""Statistics of a set of images by one network, gathered in a single pass over batches and ranks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from polytoken.distributed import several_ranks
from polytoken.errors import UserError
from polytoken.metrics.extractor import Extractor
from polytoken.metrics.frechet import FeatureStatistics, Gaussian
from polytoken.metrics.gather import gather_rows
from polytoken.metrics.inception_score import InceptionScore

Use = Literal["generation", "reconstruction"]

SPLIT = 5000  # images per split of the inception score, as in ADM's evaluator
RECONSTRUCTION_SPLITS = 10  # with 50,000 images, as many images per split


@dataclass(frozen=True)
class ImageStatistics:
    """Statistics of a set of images by one network.

    Args:
        extractor: name of the network.
        count: number of images.
        features: Gaussian of the pooled features, for FID.
        spatial: Gaussian of the maps, for sFID; None if the network gives none.
        score: mean of the splits' inception scores; None if the network knows no classes.
        splits: splits of the score, in words.
        recognised: share of the labelled images that the network assigns to their label; None without labels.
        rows: pooled features (N, D) float32 on the CPU, ordered by index, for precision, recall and KID; None if they
            were not kept.
    """

    extractor: str
    count: int
    features: Gaussian
    spatial: Gaussian | None
    score: float | None
    splits: str
    recognised: float | None
    rows: Tensor | None


class ImageSet:
    """Accumulator of :class:`ImageStatistics`.

    Args:
        extractor: the network.
        num_splits: splits of the inception score.
        split_size: images per split of the score, see :class:`InceptionScore`.
        keep_rows: keep the pooled features of each image: 50,000 of Inception's take 410 MB, and twice that at the end.
    """

    def __init__(
        self, extractor: Extractor, num_splits: int = 1, split_size: int | None = None, keep_rows: bool = False
    ) -> None:
        device = extractor.device
        self._extractor = extractor
        self._keep_rows = keep_rows
        dealt = "one split" if num_splits == 1 else f"{num_splits} splits, images dealt out in turn"
        self._splits = dealt if split_size is None else f"{split_size} images a split"
        self._features = FeatureStatistics(extractor.num_features).to(device)
        self._spatial = None if extractor.num_spatial is None else FeatureStatistics(extractor.num_spatial).to(device)
        self._score = (
            None
            if extractor.num_classes is None
            else InceptionScore(extractor.num_classes, num_splits, split_size).to(device)
        )
        self._rows: list[Tensor] = []
        self._indices: list[Tensor] = []
        self._counts = torch.zeros(3, dtype=torch.int64)  # images, labelled, recognised

    @classmethod
    def for_use(cls, extractor: Extractor, count: int, keep_rows: bool, use: Use = "generation") -> ImageSet:
        """Empty set for ``count`` images: ADM's splits of the score for Inception, one split for other networks.

        Reconstructions are dealt out to ten splits: a validation set is sorted by class, and 5,000 of its images in a
        row show a tenth of the classes.
        """
        if extractor.name != "inception":
            return cls(extractor, keep_rows=keep_rows)
        if use == "reconstruction":
            return cls(extractor, num_splits=RECONSTRUCTION_SPLITS, keep_rows=keep_rows)
        return cls(extractor, num_splits=-(-count // SPLIT), split_size=SPLIT, keep_rows=keep_rows)

    @torch.inference_mode()
    def add(self, images: Tensor, labels: Tensor | None = None, indices: Tensor | None = None) -> None:
        """Add a batch.

        Args:
            images: (B, 3, H, W) as the network takes them, usually uint8.
            labels: (B,), where they are known.
            indices: (B,) positions in the whole set, which determine the splits. A single process may omit them, and
                they count on. Images with a negative index pad a rank's last batch and are skipped.

        Raises:
            TypeError: if the images do not have the dtype that the network takes.
            UserError: if the shape is wrong, features are not finite, or one of several ranks omits the indices.
        """
        if indices is None:
            if several_ranks():
                raise UserError("several ranks measure one set: give ImageSet.add the indices of the images")
            indices = torch.arange(len(images)) + self._counts[0]
        kept = (indices >= 0).cpu()
        images, indices = images[kept.to(images.device)], indices.cpu()[kept]
        if not len(images):
            return
        pooled, logits, spatial = self._extractor(images)
        for features in (pooled, logits, spatial):
            if features is not None and not bool(torch.isfinite(features).all()):
                raise UserError(f"the features that {self._extractor.name} makes of the images are not finite")
        self._features.update(pooled)
        if self._spatial is not None and spatial is not None:
            self._spatial.update(spatial)
        if self._score is not None and logits is not None:
            self._score.update(logits, indices.to(logits.device))
            if labels is not None:
                hits = logits.argmax(1).cpu() == labels.cpu()[kept]
                self._counts += torch.tensor([0, len(hits), int(hits.sum())])
        self._counts[0] += len(images)
        if self._keep_rows:
            self._rows.append(pooled.cpu())
            self._indices.append(indices)

    def compute(self) -> ImageStatistics:
        """Statistics of all images of all ranks; every rank must call it.

        Raises:
            UserError: for fewer than two images.
        """
        device = self._extractor.device
        count, labelled, recognised = gather_rows([self._counts[None].to(device)], device).sum(0).tolist()
        return ImageStatistics(
            extractor=self._extractor.name,
            count=count,
            features=self._features.compute().to(torch.device("cpu")),
            spatial=None if self._spatial is None else self._spatial.compute().to(torch.device("cpu")),
            score=None if self._score is None else float(self._score.compute()),
            splits=self._splits,
            recognised=recognised / labelled if labelled else None,
            rows=self._gathered() if self._keep_rows else None,
        )

    def _gathered(self) -> Tensor:
        device = self._extractor.device if several_ranks() else torch.device("cpu")
        rows = gather_rows([part.to(device) for part in self._rows], device).cpu()
        order = gather_rows([part.to(device) for part in self._indices], device).cpu().argsort()
        return rows[order]
