from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from polytoken.classifier import SmallClassifier
from polytoken.metrics.extractor import Extractor, ImageFeatures
from polytoken.metrics.image_set import ImageSet
from polytoken.metrics.judge import Judge
from polytoken.metrics.teacher_extractor import TeacherExtractor
from polytoken.teachers import Teacher
from polytoken.teachers.stand_in import SmallVisionTransformer
from tests.support.extractors import MeanColours, images

CPU = torch.device("cpu")


def test_one_pass_gives_all_statistics() -> None:
    extractor = MeanColours()
    measured_set = ImageSet(extractor, num_splits=2, keep_rows=True)
    whole, labels = images(), torch.arange(24) % 3
    for part, own in zip(whole.split(7), labels.split(7), strict=True):
        measured_set.add(part, own)
    measured = measured_set.compute()
    pooled, logits, spatial = extractor(whole)
    assert logits is not None and spatial is not None
    assert (measured.extractor, measured.count) == ("mean_colours", 24)
    np.testing.assert_allclose(measured.features.covariance, np.cov(pooled.double().numpy(), rowvar=False), atol=1e-9)
    assert measured.spatial is not None and measured.rows is not None and measured.score is not None
    np.testing.assert_allclose(measured.spatial.mean, spatial.double().mean(0), rtol=1e-12)
    assert torch.equal(measured.rows, pooled)
    assert measured.recognised == pytest.approx((logits.argmax(1) == labels).float().mean().item())

    def score(part: Tensor) -> Tensor:
        return (part * (part / part.mean(0)).log()).sum(1).mean().exp()

    probabilities = logits.double().softmax(1)
    assert measured.score == pytest.approx(float((score(probabilities[::2]) + score(probabilities[1::2])) / 2))


def test_unlabelled_images_are_not_counted_as_recognised() -> None:
    whole, extractor = ImageSet(MeanColours()), MeanColours()
    logits = extractor(images()).logits
    assert logits is not None
    whole.add(images(), logits.argmax(1))
    whole.add(images())
    measured = whole.compute()
    assert (measured.count, measured.recognised) == (48, 1.0)


def test_order_and_padding_do_not_matter() -> None:
    whole = images()
    expected, found = (ImageSet(MeanColours(), 3, keep_rows=True) for _ in range(2))
    expected.add(whole)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    for part in order.split(9):
        padding = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)  # of index −1
        indices = torch.cat((torch.tensor([-1]), part, torch.tensor([-1])))
        found.add(torch.cat((padding[:1], whole[part], padding[1:])), torch.zeros(len(indices)), indices)
    found.add(padding, None, torch.tensor([-1, -1]))
    first, second = expected.compute(), found.compute()
    assert first.count == second.count == 24
    assert first.rows is not None and second.rows is not None and torch.equal(first.rows, second.rows)
    assert first.score == pytest.approx(second.score, rel=1e-12)
    torch.testing.assert_close(first.features.covariance, second.features.covariance)


def test_non_finite_features_are_rejected() -> None:
    class Broken(MeanColours):
        def __call__(self, images: Tensor) -> ImageFeatures:
            return super().__call__(images)._replace(spatial=torch.full((len(images), 4), torch.nan))

    with pytest.raises(ValueError, match="features that mean_colours makes of the images are not finite"):
        ImageSet(Broken()).add(images())


def extractors(directory: Path) -> list[Extractor]:
    path = directory / "judge.safetensors"
    SmallClassifier(3, (8, 8)).save(path, accuracy=0.5)
    stand_in = directory / "mid.safetensors"
    SmallVisionTransformer(8, width=8, depth=1, num_heads=2, pooling="mean").save(stand_in)
    teacher = TeacherExtractor(Teacher("stand_in", str(stand_in)), CPU)
    return [Judge(SmallClassifier.load(path), path), teacher]


def test_judge_and_teachers_are_interchangeable(tmp_path: Path) -> None:
    names = []
    for extractor in extractors(tmp_path):
        with torch.autocast("cpu", torch.bfloat16):
            pooled, logits, spatial = extractor(images())
        assert pooled.dtype == torch.float32 and torch.equal(pooled, extractor(images()).pooled)
        assert torch.equal(pooled, extractor(images().to(memory_format=torch.channels_last)).pooled)
        assert pooled.shape == (24, extractor.num_features) and spatial is None
        assert (None if logits is None else logits.shape[1]) == extractor.num_classes
        assert extractor.sha256 is not None and len(extractor.sha256) == 64
        with pytest.raises(TypeError, match="expected uint8"):
            extractor(images().float())
        whole = ImageSet(extractor)
        whole.add(images())
        assert (whole.compute().score is None) == (extractor.num_classes is None)
        names.append(extractor.name)
    assert names == ["judge", "stand_in"]
