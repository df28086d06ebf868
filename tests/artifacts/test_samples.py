"""Files of samples: numpy reads ours, and foreign files are read or rejected with a reason."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from artifacts.samples import SamplesFile, write_samples

IMAGES = np.random.default_rng(0).integers(0, 256, (7, 4, 6, 3), dtype=np.uint8)
LABELS = np.arange(7) % 3


def test_numpy_reads_files_written_in_chunks(tmp_path: Path) -> None:
    path = tmp_path / "samples.npz"
    write_samples(path, iter([IMAGES[:3], IMAGES[3:]]), LABELS, (4, 6, 3))
    with np.load(path, allow_pickle=False) as archive:
        assert archive.files == ["arr_0", "arr_1"]
        assert (archive["arr_0"] == IMAGES).all() and archive["arr_0"].dtype == np.uint8
        assert (archive["arr_1"] == LABELS).all()
    assert [path] == list(tmp_path.iterdir())


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_foreign_files_are_read_in_batches(save: object, tmp_path: Path) -> None:
    path = tmp_path / "others.npz"
    save(path, IMAGES, LABELS.astype(np.int32))  # type: ignore[operator]
    samples = SamplesFile(path)
    assert len(samples) == 7 and samples.image_size == (4, 6)
    assert samples.labels is not None and samples.labels.dtype == np.int64
    batches = list(samples.batches(3))
    assert [len(batch) for batch in batches] == [3, 3, 1]
    assert (np.concatenate(batches) == IMAGES).all()


def test_labels_are_optional(tmp_path: Path) -> None:
    np.savez(tmp_path / "bare.npz", IMAGES)
    assert SamplesFile(tmp_path / "bare.npz").labels is None


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ((IMAGES / 255,), "arr_0 is float64: images must be uint8"),
        ((IMAGES.transpose(0, 3, 1, 2),), r"shape \(7, 3, 4, 6\)"),
        ((IMAGES[0],), "shape"),
        ((IMAGES[:0],), "shape"),
        ((np.array([{}], dtype=object),), "pickle"),
        ((IMAGES, LABELS[:5]), r"arr_1 is int64 \(5,\) for 7 images"),
        ((IMAGES, LABELS / 1), "arr_1 is float64"),
        ((IMAGES, LABELS - 1), "holds the label -1: classes are numbered from 0"),
        (
            (IMAGES, LABELS.astype(np.uint64) + np.uint64(2**63)),
            f"holds the label {2**63 + int(LABELS.max())}: classes",
        ),
        ((IMAGES, np.array([None] * 7)), "arr_1 is a pickle"),
    ],
)
def test_files_without_samples_are_rejected(arrays: tuple[np.ndarray, ...], says: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.npz"
    np.savez(path, *arrays)
    with pytest.raises(ValueError, match=says) as caught:
        SamplesFile(path)
    assert str(path) in str(caught.value)


def test_another_archive_and_a_missing_file_are_rejected(tmp_path: Path) -> None:
    np.savez(tmp_path / "named.npz", images=IMAGES)
    with pytest.raises(ValueError, match="no array arr_0, only images"):
        SamplesFile(tmp_path / "named.npz")
    with pytest.raises(FileNotFoundError, match="make sample"):
        SamplesFile(tmp_path / "missing.npz")


def test_a_truncated_file_is_rejected(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, IMAGES)
    path = tmp_path / "short.npz"
    for kept in (0, 20, len(buffer.getvalue()) - 10):
        path.write_bytes(buffer.getvalue()[:kept])
        with pytest.raises(ValueError, match="is not a file of samples"):
            SamplesFile(path)


def test_images_cast_from_floats_in_0_1_are_detected(tmp_path: Path) -> None:
    path = tmp_path / "dark.npz"
    np.savez(path, IMAGES // 255)
    with pytest.raises(ValueError, match="dark.npz holds only black images"):
        list(SamplesFile(path).batches(3))
    one = np.zeros_like(IMAGES)
    one[0, 0, 0, 0] = 2
    np.savez(path, one)
    assert len(list(SamplesFile(path).batches(3))) == 3


def test_a_damaged_byte_is_detected(tmp_path: Path) -> None:
    path = tmp_path / "damaged.npz"
    np.savez(path, IMAGES)
    content = bytearray(path.read_bytes())
    content[300] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        list(SamplesFile(path).batches(7))


def test_a_wrong_number_of_images_is_detected(tmp_path: Path) -> None:
    content = io.BytesIO()
    np.save(content, IMAGES)
    for changed, says in (
        (content.getvalue() + b"0", 505),
        (content.getvalue()[:-1], 503),
    ):
        with zipfile.ZipFile(tmp_path / "other.npz", "w") as archive:
            archive.writestr("arr_0.npy", changed)
        with pytest.raises(ValueError, match=rf"arr_0 has {says} bytes, and its header says uint8 .*: 504"):
            SamplesFile(tmp_path / "other.npz")


def test_nothing_is_written_if_images_and_labels_disagree(tmp_path: Path) -> None:
    path = tmp_path / "samples.npz"
    with pytest.raises(ValueError, match="expected 7 images, got 3"):
        write_samples(path, iter([IMAGES[:3]]), LABELS, (4, 6, 3))
    assert not path.exists()
