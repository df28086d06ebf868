import torch
from torch.nn import functional

from polytoken.images import from_uint8
from polytoken.metrics.extractors import load_extractor
from polytoken.metrics.image_set import ImageSet
from polytoken.teachers.efficientnet import load_efficientnet
from tests.support.precision import caller_in_bfloat16


def test_features_are_those_that_the_classifier_reads_and_no_classes() -> None:
    with caller_in_bfloat16():
        extractor = load_extractor("efficientnet_lite2", None, torch.device("cpu"))
    images = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    network = load_efficientnet("efficientnet_lite2")
    inputs = functional.interpolate(from_uint8(images), (260, 260), mode="bicubic", antialias=True).clamp(-1, 1)
    with torch.inference_mode():
        expected = network.forward_head(network.forward_features(inputs), pre_logits=True)
    torch.testing.assert_close(extractor(images).pooled, expected)
    assert extractor.sha256.startswith("9656183e"), "as its file is named"

    measured = ImageSet.for_use(extractor, 3, keep_rows=True)
    measured.add(images, torch.tensor([0, 1, 2]))
    found = measured.compute()
    assert found.extractor == "efficientnet_lite2" and found.features.mean.shape == (1280,)
    assert found.score is None and found.recognised is None, "classes of ImageNet are not those of the data"
