"""Reference files: reading, writing, validation, and compatibility with ADM's format."""

import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from artifacts.reference import Reference, ReferenceProtocol, write_reference
from artifacts.samples import SamplesFile
from polytoken.errors import UserError
from polytoken.files import file_sha256
from polytoken.metrics.frechet import FeatureStatistics, Gaussian
from tests.support.extractors import MeanColours

PROTOCOL = ReferenceProtocol("validation", "digits", 30, 8, "mean_colours", "0" * 64, "none")


def gaussian(dimensions: int, seed: int = 0) -> Gaussian:
    statistics = FeatureStatistics(dimensions)
    statistics.update(torch.randn(30, dimensions, generator=torch.Generator().manual_seed(seed)))
    return statistics.compute()


def pictures(number: int = 5, size: int = 8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (number, size, size, 3), dtype=np.uint8)


def written(path: Path, protocol: ReferenceProtocol = PROTOCOL) -> Path:
    write_reference(path, protocol, gaussian(3), gaussian(4), [pictures()[:2], pictures()[2:]], 5)
    return path


def adm(path: Path, **arrays: np.ndarray) -> Path:
    """The arrays of ADM's VIRTUAL_imagenet256_labeled.npz, small."""
    own = {"mu": np.zeros(3, np.float32), "sigma": np.eye(3), "mu_s": np.zeros(4), "sigma_s": np.eye(4)}
    np.savez(path, **{**own, "arr_0": pictures(), **arrays})
    return path


def npy(array: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


def test_a_reference_round_trips(tmp_path: Path) -> None:
    path = written(tmp_path / "new/reference.npz")
    reference = Reference.read(path)
    assert reference.protocol == PROTOCOL
    assert reference.sha256 == file_sha256(path)
    assert reference.spatial is not None
    for found, expected in ((reference.features, gaussian(3)), (reference.spatial, gaussian(4))):
        assert found.number == 30
        assert torch.equal(found.mean, expected.mean) and torch.equal(found.covariance, expected.covariance)
    assert reference.num_images == 5
    np.testing.assert_array_equal(next(SamplesFile(path).batches(5)), pictures())
    with np.load(path) as arrays:  # ADM's evaluator asks for "mu" and takes the four
        assert {"mu", "sigma", "mu_s", "sigma_s", "arr_0"} < set(arrays.keys())
        assert json.loads(str(arrays["protocol"]))["kind"] == "validation"
    assert [file.name for file in path.parent.iterdir()] == ["reference.npz"]


def test_adms_file_is_training_images_of_unknown_number(tmp_path: Path) -> None:
    reference = Reference.read(adm(tmp_path / "adm.npz"))
    assert reference.protocol == ReferenceProtocol(
        "adm train", "ADM's reference batch", None, 8, "inception", None, None
    )
    assert reference.features.number is None and reference.features.shortage is None
    assert reference.features.mean.dtype == torch.float64
    assert reference.require("generation") is None
    np.savez(tmp_path / "fid.npz", mu=np.zeros(3), sigma=np.eye(3))
    assert Reference.read(tmp_path / "fid.npz").protocol.kind == "unknown"


def test_a_reference_of_the_other_split_is_rejected_unless_forced(tmp_path: Path) -> None:
    validation = Reference.read(written(tmp_path / "validation.npz"))
    train = Reference.read(written(tmp_path / "train.npz", replace(PROTOCOL, kind="train")))
    assert validation.require("reconstruction") is None and train.require("generation") is None
    for reference, use in ((validation, "generation"), (train, "reconstruction")):
        with pytest.raises(ValueError, match=f"{reference.protocol.kind}.npz is of {reference.protocol.kind} images"):
            reference.require(use)
        assert "compares with no published one" in (reference.require(use, forced=True) or "")
    np.savez(tmp_path / "fid.npz", mu=np.zeros(3), sigma=np.eye(3))
    for use in ("generation", "reconstruction"):
        with pytest.raises(ValueError, match="does not say which images"):
            Reference.read(tmp_path / "fid.npz").require(use)


def test_another_network_or_size_is_rejected(tmp_path: Path) -> None:
    extractor = MeanColours()
    reference = Reference.read(written(tmp_path / "reference.npz"))
    reference.require_same(extractor, (8, 8))
    for size in ((16, 16), (8, 16), (16, 8)):
        with pytest.raises(ValueError, match=f"images of 8 px, and these have {size[0]} × {size[1]}"):
            reference.require_same(extractor, size)
    for change, message in (
        ({"extractor": "inception"}, "measured by inception, not by mean_colours"),
        ({"extractor_sha256": "1" * 64}, f"SHA-256 {'1' * 64}, and this one has {'0' * 64}"),
        ({"resize": "bicubic"}, "resize 'bicubic', not 'none'"),
    ):
        other = Reference.read(written(tmp_path / "other.npz", replace(PROTOCOL, **change)))
        with pytest.raises(ValueError, match=message):
            other.require_same(extractor)
    wide = replace(reference, features=gaussian(5))
    with pytest.raises(ValueError, match="holds 5 features, and mean_colours has 3"):
        wide.require_same(extractor)
    wide = replace(reference, spatial=gaussian(5))
    with pytest.raises(ValueError, match="holds 5 spatial features, and mean_colours has 4"):
        wide.require_same(extractor)


@pytest.mark.parametrize(
    ("sigma", "says"),
    [
        (-np.eye(3), "sigma is not positive semi-definite"),
        (np.array([[1.0, 2, 0], [2, 1, 0], [0, 0, 1]]), "sigma is not positive semi-definite"),
        (np.array([[1.0, 0.5, 0], [0, 1, 0], [0, 0, 1]]), "sigma is not symmetric, by 0.5"),
        (np.full((3, 3), np.nan), "sigma is not finite"),
    ],
)
def test_what_is_no_covariance_is_refused(sigma: np.ndarray, says: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "fid.npz", mu=np.zeros(3), sigma=sigma)
    with pytest.raises(UserError, match=rf"fid.npz is not a reference file: {says}.* write one with `make reference`"):
        Reference.read(tmp_path / "fid.npz")


def test_covariances_within_rounding_are_read(tmp_path: Path) -> None:
    """Covariances of few images, of constant features, and in float32, as other programs write them."""
    rows = np.random.default_rng(0).normal(size=(20, 64)) * np.geomspace(1e-3, 10, 64)
    for sigma in (np.zeros((64, 64)), np.cov(rows, rowvar=False), np.cov(rows, rowvar=False).astype(np.float32)):
        np.savez(tmp_path / "fid.npz", mu=np.zeros(64), sigma=sigma)
        Reference.read(tmp_path / "fid.npz")


def test_a_covariance_of_one_image_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "one.npz", replace(PROTOCOL, number=1))
    with pytest.raises(UserError, match="its protocol says 1 images, which have no covariance"):
        Reference.read(path)


def test_damaged_and_foreign_files_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="make reference"):
        Reference.read(tmp_path / "none.npz")
    whole = written(tmp_path / "whole.npz").read_bytes()
    path = tmp_path / "file.npz"
    for kept in (0, 100, len(whole) // 2, len(whole) - 30):
        path.write_bytes(whole[:kept])
        with pytest.raises(ValueError, match="file.npz is not a reference file: File is not a zip file"):
            Reference.read(path)
    flipped = bytearray(whole)
    flipped[whole.index(b"NUMPY") + 130] ^= 0xFF  # in mu, which has a checksum in the zip
    path.write_bytes(flipped)
    with pytest.raises(ValueError, match="not a reference file: Bad CRC-32"):
        Reference.read(path)
    asymmetric = np.eye(3)
    asymmetric[0, 1] = np.nan
    for arrays, message in (
        ({"mu": np.array([pytest.fail], dtype=object)}, "mu is a pickle"),
        ({"mu": np.full(3, np.nan)}, "mu is not finite"),
        ({"sigma": asymmetric}, "sigma is not finite"),
        ({"sigma": np.eye(4)}, r"mu is float32 \(3,\) and sigma float64 \(4, 4\)"),
        ({"sigma": np.eye(3, dtype=int)}, "sigma int64"),
        ({"arr_0": np.zeros((2, 8, 8, 3))}, "arr_0 is float64"),
        ({"protocol": np.array('{"kind": "train"}')}, "its protocol: .*missing required field source"),
        ({"protocol": np.array("train")}, "its protocol is not valid JSON"),
        ({"protocol": np.array(json.dumps({**vars(PROTOCOL), "image_size": 9}))}, "8 px, and its protocol says 9"),
    ):
        with pytest.raises(ValueError, match=message):
            Reference.read(adm(path, **arrays))
    with zipfile.ZipFile(adm(path), "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("arr_0.npy", npy(pictures())[:-1])  # zipfile reads the last member of that name
    with pytest.raises(ValueError, match=r"arr_0 has 959 bytes, and its header says uint8 \(5, 8, 8, 3\): 960"):
        Reference.read(path)
    np.savez(path, pictures())
    with pytest.raises(ValueError, match="holds images and no statistics"):
        Reference.read(path)
    np.savez(path, mu=np.zeros(3))
    with pytest.raises(ValueError, match="has no array sigma, only mu"):
        Reference.read(path)


def test_no_partial_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "reference.npz"
    for images, message in (([pictures(4)], "expected 5 images, got 4"), ([pictures(5, 9)], r"\(9, 9, 3\)")):
        with pytest.raises(ValueError, match=message):
            write_reference(path, PROTOCOL, gaussian(3), None, images, 5)
        assert list(tmp_path.iterdir()) == []
