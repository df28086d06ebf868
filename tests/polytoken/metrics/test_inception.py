"""Inception from a file in the published format with random weights; published values need the real ones."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from torch_fidelity import calculate_metrics
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from polytoken.files import file_sha256
from polytoken.metrics.image_metrics import Target, image_metrics
from polytoken.metrics.image_set import ImageSet
from polytoken.metrics.inception import Inception
from tests.support.precision import caller_in_bfloat16

LAYERS = ["2048", "logits_unbiased"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state dict with activations of about unit size throughout."""
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save({}, path)
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        torch.manual_seed(0)
        network = FeatureExtractorInceptionV3("inception", LAYERS, str(path))
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.normal_(0, (2 / module.weight[0].numel()) ** 0.5, generator=generator)
        if isinstance(module, nn.BatchNorm2d):
            module.bias.normal_(0, 0.1, generator=generator)
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def inception(weights: Path) -> Inception:
    with caller_in_bfloat16():
        return Inception(weights, sha256=file_sha256(weights))


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randint(0, 256, (2, 3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_features_equal_torch_fidelity(inception: Inception, weights: Path, images: Tensor) -> None:
    pooled, logits = FeatureExtractorInceptionV3("own", LAYERS, str(weights))(images)
    found = inception(images)
    assert found.pooled.shape == (2, 2048) and found.pooled.std() > 0.01
    assert torch.equal(found.pooled, pooled)
    assert found.logits is not None and found.logits.shape == (2, 1008)
    assert torch.equal(found.logits, logits)
    assert not torch.equal(logits, FeatureExtractorInceptionV3("own", ["logits"], str(weights))(images)[0])  # its bias


class Pictures(Dataset[Tensor]):
    """Noise images uint8 (3, 24, 24), brighter or darker."""

    def __init__(self, seed: int, brightest: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.images = torch.randint(0, brightest, (12, 3, 24, 24), dtype=torch.uint8, generator=generator)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> Tensor:
        return self.images[row]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:12 images for 2048 features")
def test_metrics_equal_torch_fidelity_end_to_end(
    inception: Inception, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both read one weights file; KID's only subset is the whole set, so no random choice differs."""
    monkeypatch.setattr("polytoken.metrics.image_metrics.KID_SUBSET", 12)
    generated, real = Pictures(0, 240), Pictures(1, 256)
    theirs = calculate_metrics(
        input1=generated,
        input2=real,
        **dict.fromkeys(("isc", "fid", "kid", "prc"), True),
        **dict.fromkeys(("cuda", "cache", "verbose", "samples_shuffle"), False),
        feature_extractor="inception-v3-compat",
        feature_extractor_weights_path=str(weights),
        isc_splits=3,
        kid_subsets=2,
        kid_subset_size=12,
        batch_size=6,
    )
    measured = []
    for pictures in (generated, real):
        whole = ImageSet(inception, num_splits=3, split_size=4, keep_rows=True)
        for batch in pictures.images.split(6):
            whole.add(batch)
        measured.append(replace(whole.compute(), spatial=None))  # which torch-fidelity does not compare
    ours = image_metrics(measured[0], Target.of_images(measured[1], "real ones"))
    for own, other in (
        ("gfid", "frechet_inception_distance"),
        ("gis", "inception_score_mean"),
        ("gkid", "kernel_inception_distance_mean"),
        ("precision", "precision"),
        ("recall", "recall"),
    ):
        assert ours[f"{own}/inception"]["value"] == pytest.approx(theirs[other], rel=1e-4), own


def test_spatial_features_are_seven_channel_last_maps_of_mixed_6(inception: Inception, images: Tensor) -> None:
    network = inception._network
    before: list[Tensor] = []
    handle = network.Mixed_6c.register_forward_hook(lambda module, inputs, output: before.append(output))
    found = inception(images).spatial
    handle.remove()
    block = network.Mixed_6d.branch1x1
    maps = block.bn(block.conv(before[0])).relu()
    assert maps.shape == (2, 192, 17, 17)
    assert found is not None and found.shape == (2, inception.num_spatial) == (2, 2023)
    torch.testing.assert_close(found.unflatten(1, (17, 17, 7)), maps[:, :7].permute(0, 2, 3, 1))


def test_images_are_resized_as_in_tensorflow_1(inception: Inception) -> None:
    """Column j samples j · width / 299, without half pixels and antialiasing; the last column is repeated."""
    ramp = (torch.arange(20) * 10).to(torch.uint8).expand(1, 3, 20, 20)
    seen: list[Tensor] = []
    handle = inception._network.Conv2d_1a_3x3.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    inception(ramp)
    handle.remove()
    positions = (torch.arange(299) * 20 / 299).clamp_max(19)
    torch.testing.assert_close(seen[0][0, 0, 7], (positions * 10 - 128) / 128, atol=1e-5, rtol=0)


def test_autocast_and_tf32_do_not_change_features(inception: Inception, images: Tensor) -> None:
    alone = inception(images)
    with torch.autocast("cpu", torch.bfloat16):
        within = inception(images)
    for first, second in zip(alone, within, strict=True):
        assert first is not None and second is not None
        assert second.dtype == torch.float32 and torch.equal(first, second)


def test_invalid_images_are_rejected(inception: Inception, images: Tensor) -> None:
    with pytest.raises(TypeError, match=r"images are torch\.float32, expected uint8"):
        inception(images.float() / 127.5 - 1)
    with pytest.raises(ValueError, match=r"shape \(2, 40, 40, 3\)"):
        inception(images.permute(0, 2, 3, 1))


def test_other_weight_files_are_rejected(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="run `make weights`"):
        Inception(tmp_path / "none.pth")
    with pytest.raises(ValueError, match=f"SHA-256 {file_sha256(weights)}, and Inception's is 6726825d"):
        Inception(weights)
    code = tmp_path / "code.pth"
    torch.save({"weights": pytest.fail}, code)
    with pytest.raises(ValueError, match="not a readable weights file"):
        Inception(code, sha256=file_sha256(code))
    other = tmp_path / "other.pth"
    torch.save(nn.Linear(2, 2).state_dict(), other)
    with pytest.raises(ValueError, match="other.pth is not Inception"):
        Inception(other, sha256=file_sha256(other))
