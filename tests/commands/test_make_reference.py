"""Statistics of real images in a file: their values, unreadable images, and validation of the input."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from artifacts.reference import Reference
from artifacts.samples import SamplesFile
from commands import reference
from datamodules import DigitsSource
from polytoken.classifier import SmallClassifier
from polytoken.files import file_sha256
from polytoken.metrics.image_set import ImageSet
from polytoken.metrics.judge import Judge
from tests.support.recipes import write_judge


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    write_judge(tmp_path / "runs/digits/teacher/judge.safetensors")
    return tmp_path / "runs"


def judged(images: np.ndarray, runs: Path) -> torch.Tensor:
    path = runs / "digits/teacher/judge.safetensors"
    whole = ImageSet(Judge(SmallClassifier.load(path), path))
    for batch in torch.from_numpy(images).permute(0, 3, 1, 2).split(reference.BATCH):  # float32 varies with batch sizes
        whole.add(batch)
    return whole.compute().features.mean


def refusal(capsys: pytest.CaptureFixture, *arguments: object) -> str:
    with pytest.raises(SystemExit) as stop:
        reference.main([str(argument) for argument in arguments])
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_reference_of_a_preset(runs: Path, capsys: pytest.CaptureFixture) -> None:
    reference.main(["--runs", str(runs), "--images", "50"])
    path = runs / "digits/reference/validation_judge.npz"
    found, records = Reference.read(path), DigitsSource().split("validation")
    images = np.stack([np.asarray(records.load(i)) for i in range(len(records))])
    own = found.protocol
    assert (own.kind, own.number, own.image_size, own.extractor, own.resize) == (
        "validation",
        len(images),
        32,
        "judge",
        "none",
    )
    assert own.source == "validation images of digits, centre-cropped"
    assert own.extractor_sha256 == file_sha256(runs / "digits/teacher/judge.safetensors")
    torch.testing.assert_close(found.features.mean, judged(images, runs), rtol=1e-9, atol=0)
    rows = [row * len(images) // 50 for row in range(50)]
    np.testing.assert_array_equal(next(SamplesFile(path).batches(50)), images[rows])
    assert f"{path} (SHA-256 {found.sha256})" in capsys.readouterr().out.replace("\n", "")


def test_reference_of_an_npz_by_inception(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The judge replaces Inception, whose weights are not available."""
    path = runs / "digits/teacher/judge.safetensors"
    monkeypatch.setattr(
        "polytoken.metrics.extractors.Inception",
        lambda weights, device: Judge(SmallClassifier.load(path), path, "inception"),
    )
    images = np.random.default_rng(0).integers(0, 256, (300, 8, 8, 3), dtype=np.uint8)  # more than one batch
    np.savez(tmp_path / "val.npz", images)
    options = ["--npz", tmp_path / "val.npz", "--split", "train", "--runs", runs, "--images", 7]
    reference.main([str(option) for option in options])
    found = Reference.read(runs / "any/reference/val_inception.npz")
    assert (found.protocol.kind, found.protocol.number, found.protocol.image_size) == ("train", 300, 8)
    assert found.protocol.source == f"val.npz, SHA-256 {file_sha256(tmp_path / 'val.npz')}"
    torch.testing.assert_close(found.features.mean, judged(images, runs), rtol=1e-9, atol=0)
    rows = [row * 300 // 7 for row in range(7)]
    np.testing.assert_array_equal(next(SamplesFile(found.path).batches(7)), images[rows])


def test_unreadable_images_are_left_out_and_reported(runs: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "images/val" / name).mkdir(parents=True)
        (tmp_path / "images/train" / name).mkdir(parents=True)
        for number in range(3):
            picture = Image.new("RGB", (40, 50), (number * 40, 0, 90))
            picture.save(tmp_path / f"images/val/{name}/{number}.png")
            picture.save(tmp_path / f"images/train/{name}/{number}.png")
    (tmp_path / "images/val/a/1.png").write_bytes(b"no picture")
    preset = reference.Preset.load("imagenet", str(tmp_path / "images"))
    preset.data.num_workers, preset.data.image_size, preset.data.max_bad_fraction = 0, 256, 0.5
    path = runs / "digits/teacher/judge.safetensors"
    extractor = Judge(SmallClassifier.load(path), path)
    source = reference.Source.of_preset(preset, "validation")
    found = reference.measure(source, "validation", extractor, 4, tmp_path / "reference.npz")
    assert (found.protocol.number, found.num_images) == (5, 4)
    assert found.protocol.source == "validation images of imagenet, centre-cropped, 1 of which cannot be read"


def test_missing_files_are_reported(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert "there is no preset cats" in refusal(capsys, "--preset", "cats")
    assert "no Inception weights at" in refusal(capsys, "--extractor", "inception", "--weights", tmp_path / "none")
    assert "no samples at" in refusal(capsys, "--npz", tmp_path / "none.npz", "--extractor", "inception")
    assert "no teacher is called 'cat'" in refusal(capsys, "--extractor", "cat")
    np.savez(tmp_path / "floats.npz", np.zeros((3, 8, 8, 3)))
    assert "arr_0 is float64" in refusal(capsys, "--npz", tmp_path / "floats.npz", "--extractor", "inception")
    assert "is not a folder: name the one that holds train" in refusal(
        capsys, "--preset", "imagenet", "--data", tmp_path / "none", "--extractor", "inception"
    )
