"""What a classifier makes of reconstructions: accuracy, Fréchet distance and inception score."""

from __future__ import annotations

import lightning.pytorch as pl
from torch import Tensor
from torchmetrics import MeanMetric

from callbacks.measure.measurement import Measurement
from polytoken.classifier import SmallClassifier
from polytoken.metrics.frechet import FeatureStatistics, frechet_distance
from polytoken.metrics.images import as_displayed
from polytoken.metrics.inception_score import InceptionScore
from polytoken.precision import full_precision
from polytoken.specs import Encoding


class JudgeMetrics(Measurement):
    """Compares reconstructions with the images, in the eyes of a small classifier of the same data.

    Logs ``judge_accuracy`` (share of labels recognised), ``rfd/judge`` (Fréchet distance of its pooled features to
    those of the originals) and ``ris/judge`` (inception score of its logits), all of 8-bit reconstructions; accuracy
    and score of the originals, the best to be expected, as ``…_originals``. ``rfd_raw/judge`` and ``ris_raw/judge`` are
    of the decoder's output as it is, neither clamped nor rounded. The originals are 8-bit images in either case, as
    they came from their files. None compares with a figure measured with Inception.

    Args:
        weights: the judge's safetensors (``make teacher`` trains it).
    """

    def __init__(self, weights: str) -> None:
        self.weights = weights

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Load the judge now, so that a missing file stops the run before its first step."""
        self._judge = SmallClassifier.load(self.weights)

    def begin(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start measuring anew."""
        self._judge.to(pl_module.device)
        self._reconstructions = _Judgement(self._judge, pl_module)
        self._raw = _Judgement(self._judge, pl_module)
        self._originals = _Judgement(self._judge, pl_module)

    def measure(self, images: Tensor, reconstruction: Tensor, labels: Tensor, encoding: Encoding) -> None:
        """Judge images and reconstructions."""
        self._reconstructions.add(as_displayed(reconstruction), labels)
        self._raw.add(reconstruction.float(), labels)
        self._originals.add(as_displayed(images), labels)

    def results(self) -> dict[str, Tensor]:
        """The distances, and accuracy and score of reconstructions and originals."""
        reconstructions, originals = self._reconstructions, self._originals
        reference = originals.features.compute()
        return {
            "judge_accuracy": reconstructions.accuracy.compute(),
            "judge_accuracy_originals": originals.accuracy.compute(),
            "rfd/judge": frechet_distance(reconstructions.features.compute(), reference),
            "rfd_raw/judge": frechet_distance(self._raw.features.compute(), reference),
            "ris/judge": reconstructions.score.compute(),
            "ris_raw/judge": self._raw.score.compute(),
            "ris/judge_originals": originals.score.compute(),
        }


class _Judgement:
    """What the judge makes of one set of images."""

    def __init__(self, judge: SmallClassifier, pl_module: pl.LightningModule) -> None:
        self._judge = judge
        self.accuracy = MeanMetric().to(pl_module.device)
        self.features = FeatureStatistics(judge.widths[-1]).to(pl_module.device)
        self.score = InceptionScore(judge.num_classes).to(pl_module.device)

    def add(self, images: Tensor, labels: Tensor) -> None:
        with full_precision(images.device):
            features = self._judge.embed(images)
            logits = self._judge.linear(features)
        self.accuracy.update((logits.argmax(1) == labels).float())
        self.features.update(features)
        self.score.update(logits)
