"""Evaluation of samples: metrics with known values, and validation of the input."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from commands import evaluate, reference
from commands.comparison import Comparison
from commands.preset import Preset
from datamodules import DigitsSource
from polytoken.classifier import SmallClassifier
from polytoken.files import file_sha256
from polytoken.fingerprint import fingerprint
from polytoken.loading import load_tokenizer
from polytoken.metrics.extractor import ImageFeatures
from polytoken.metrics.frechet import FeatureStatistics, frechet_distance
from polytoken.metrics.images import as_displayed
from polytoken.metrics.judge import Judge
from tests.support.generated import write_runs
from tests.support.precision import tf32_of_convolutions
from tests.support.recipes import write_judge


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    write_judge(tmp_path / "runs/digits/teacher/judge.safetensors")
    return tmp_path / "runs"


def digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    records = DigitsSource().split(split)  # type: ignore[arg-type]
    return np.stack([np.asarray(records.load(i)) for i in range(len(records))]), records.labels


def run(samples: Path, runs: Path, *more: str) -> dict:
    evaluate.main(["--samples", str(samples), "--runs", str(runs), *more])
    return json.loads(samples.with_name("metrics.json").read_text())["evaluate"]


def refusal(samples: Path, runs: Path, capsys: pytest.CaptureFixture, *more: str) -> str:
    with pytest.raises(SystemExit) as stop:
        evaluate.main(["--samples", str(samples), "--runs", str(runs), *more])
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_real_images_as_samples_score_like_real_images(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    images, labels = digits("validation")
    np.savez(tmp_path / "samples.npz", images, labels)
    result = run(tmp_path / "samples.npz", runs)
    samples, real = result["metrics"]["samples"], result["metrics"]["validation"]
    assert samples["gfd/judge"]["value"] == pytest.approx(0, abs=1e-6)
    assert samples["recognised/judge"]["value"] == real["recognised/judge"]["value"]
    assert samples["gis/judge"]["value"] == pytest.approx(real["is/judge"]["value"])
    assert samples["gfd/judge"]["n"] == samples["gfd/judge"]["reference_n"] == 355
    assert samples["gfd/judge"]["reference"] == "digits validation images"
    assert result["reference"]["reference_kind"] == "validation" and result["samples"]["reconstructed_by"] is None
    assert result["samples"]["sha256"] == file_sha256(tmp_path / "samples.npz")
    assert result["extractor"]["sha256"] == file_sha256(runs / "digits/teacher/judge.safetensors")
    assert result["samples"]["settings"] is None
    assert any("no reconstructions" in note for note in result["notes"])
    assert "real, validation" in capsys.readouterr().out


def test_distance_and_recognised_share_use_the_judge(runs: Path, tmp_path: Path) -> None:
    images, labels = digits("train")
    noisy = np.clip(images.astype(int) + np.random.default_rng(0).integers(-60, 60, images.shape), 0, 255)[:300]
    np.savez(tmp_path / "samples.npz", noisy.astype(np.uint8), labels[:300])
    result = run(tmp_path / "samples.npz", runs)["metrics"]

    judge = SmallClassifier.load(runs / "digits/teacher/judge.safetensors")

    def statistics(pixels: np.ndarray) -> FeatureStatistics:
        features = FeatureStatistics(32)
        for batch in DataLoader(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1, 64):
            features.update(judge.embed(as_displayed(batch)))
        return features

    expected = frechet_distance(
        statistics(noisy.astype(np.uint8)).compute(), statistics(digits("validation")[0]).compute()
    )
    assert 0 < result["samples"]["precision/judge"]["value"] < result["train"]["precision/judge"]["value"]
    assert result["samples"]["recall/judge"]["reference_rows"] == 355
    assert result["samples"]["gfd/judge"]["value"] == pytest.approx(float(expected), rel=1e-5)
    inputs = torch.from_numpy(noisy).permute(0, 3, 1, 2).float() / 127.5 - 1
    share = (judge(inputs).argmax(1).numpy() == labels[:300]).mean()
    assert result["samples"]["recognised/judge"]["value"] == pytest.approx(share)
    assert result["train"]["fd/judge"]["n"] == 300  # as many as there are samples
    assert 0 < result["train"]["fd/judge"]["value"] < result["samples"]["gfd/judge"]["value"]


def test_settings_come_from_samples_json(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    images, labels = digits("validation")
    np.savez(tmp_path / "samples.npz", images[:40], labels[:40])
    made = {
        "settings": {"sampler": {"guidance": 2.0}, "tokenizer": {"run": "gone", "fingerprint": "0"}},
        "sha256": file_sha256(tmp_path / "samples.npz"),
        "class_names": [str(digit) for digit in range(10)],
    }
    (tmp_path / "samples.json").write_text(json.dumps(made))
    (tmp_path / "metrics.json").write_text('{"test": {"kept": 1}}')
    assert run(tmp_path / "samples.npz", runs)["samples"]["settings"] == made["settings"]
    assert json.loads((tmp_path / "metrics.json").read_text())["test"] == {"kept": 1}
    (tmp_path / "samples.json").write_text(json.dumps({**made, "class_names": ["zero"]}))
    assert "class 0 is zero in" in refusal(tmp_path / "samples.npz", runs, capsys)
    settings = {"settings": {"tokenizer": {"run": {}, "fingerprint": "0"}}}
    (tmp_path / "samples.json").write_text(json.dumps({**made, **settings}))
    said = refusal(tmp_path / "samples.npz", runs, capsys)
    assert "the tokenizer in the settings of" in said and "$.run: expected str, got object" in said
    (tmp_path / "samples.json").write_text(json.dumps({**made, "sha256": "0"}))
    assert "another digest" in refusal(tmp_path / "samples.npz", runs, capsys)
    (tmp_path / "samples.json").write_text("")
    assert "samples.json is not valid JSON" in refusal(tmp_path / "samples.npz", runs, capsys)
    (tmp_path / "samples.json").write_text("[1]")
    assert run(tmp_path / "samples.npz", runs)["samples"]["settings"] is None


@pytest.mark.parametrize(("networks", "default"), [(["stand_in"], "efficientnet_lite2"), ([], "inception")])
def test_a_judge_that_a_preset_does_not_train_is_refused(
    networks: list[str], default: str, runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Not a missing reference, and not the file of the stand-in."""
    monkeypatch.setattr("commands.preset._networks", lambda _: networks)
    said = refusal(runs / "samples.npz", runs, capsys, "--extractor", "judge")
    assert f"the preset digits trains no judge: leave --extractor out, which compares by {default}, or name" in said


def test_the_named_judge_is_used(runs: Path, tmp_path: Path) -> None:
    SmallClassifier(10, (8, 8)).save(tmp_path / "other.safetensors", accuracy=0.5)
    np.savez(tmp_path / "samples.npz", *(part[:20] for part in digits("validation")))
    result = run(tmp_path / "samples.npz", runs, "--weights", str(tmp_path / "other.safetensors"))
    assert result["extractor"]["sha256"] == file_sha256(tmp_path / "other.safetensors")


def test_the_tokenizer_of_the_reconstructions_is_recorded(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = write_runs(tmp_path / "runs/digits", image_size=32).parent.parent / "tokenizer/tiny"
    np.savez(tmp_path / "samples.npz", *(part[:40] for part in digits("validation")))
    tf32 = tf32_of_convolutions(monkeypatch)
    result = run(tmp_path / "samples.npz", runs, "--tokenizer", str(tokenizer))
    assert tf32 == {False}
    known = {"run": str(tokenizer), "fingerprint": fingerprint(load_tokenizer(tokenizer))}
    assert result["samples"]["reconstructed_by"] == known
    assert result["metrics"]["reconstructions"]["rfd/judge"]["value"] > 0


@pytest.mark.parametrize(
    ("objective", "optimised"),
    [
        ({"perceptual": {"init_args": {"weights": "judge", "weight": 1.0}}}, True),
        ({"perceptual": {"init_args": {"weights": "judge", "weight": 0}}}, False),
        ({"perceptual": {"init_args": {"weights": "mid", "weight": 1.0}}, "teachers": {"high": "judge"}}, False),
        ({"terms": {"more": {"init_args": {"teacher": "high"}}}, "teachers": {"high": {"weights": "judge"}}}, True),
        (None, False),
    ],
)
def test_a_network_that_trained_the_tokenizer_is_found(
    objective: dict | None, optimised: bool, runs: Path, tmp_path: Path
) -> None:
    text = json.dumps({"model": {"init_args": {"objective": objective}}})
    for name in ("judge", "mid"):
        text = text.replace(f'"{name}"', json.dumps(str(runs / f"digits/teacher/{name}.safetensors")))
    (tmp_path / "config.yaml").write_text(text)
    digest = file_sha256(runs / "digits/teacher/judge.safetensors")
    assert evaluate._optimised(tmp_path, digest) == optimised
    assert not evaluate._optimised(tmp_path / "elsewhere", digest)


def test_non_finite_images_are_rejected(runs: Path) -> None:
    path = runs / "digits/teacher/judge.safetensors"
    comparison = Comparison(Judge(SmallClassifier.load(path), path), Preset.load("digits"))
    images = torch.zeros(4, 3, 32, 32)
    images[3, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="images are not finite"):
        comparison.measure([(images, None)])


def test_few_samples_and_missing_labels_are_noted(runs: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "samples.npz", digits("validation")[0][:20])
    result = run(tmp_path / "samples.npz", runs)
    assert result["metrics"]["samples"]["recognised/judge"]["value"] is None
    assert any("20 samples for 32 features" in note for note in result["notes"])
    assert any("no labels" in note for note in result["notes"])


def test_mismatched_images_are_rejected(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    images, labels = digits("validation")
    small, wrong, floats, short = (tmp_path / name for name in ("small.npz", "wrong.npz", "floats.npz", "short.npz"))
    np.savez(small, images[:, ::2, ::2], labels)
    assert "16 × 16 px, and the images of digits have 32 × 32" in refusal(small, runs, capsys)
    np.savez(wrong, images, labels + 3)
    assert "has label 12, and the judge" in refusal(wrong, runs, capsys)
    np.savez(floats, images / 255, labels)
    assert "float64" in refusal(floats, runs, capsys)
    short.write_bytes(small.read_bytes()[:-30])
    assert "not a file of samples" in refusal(short, runs, capsys)
    assert "no samples at" in refusal(tmp_path / "none.npz", runs, capsys)
    assert "no preset cats" in refusal(small, runs, capsys, "--preset", "cats")
    assert "`make weights` fetches that of ADM" in refusal(small, runs, capsys, "--preset", "imagenet")
    assert "make teacher" in refusal(small, tmp_path / "empty", capsys)


class Colours:
    """Network in place of Inception, whose weights cannot be shipped: means and deviations of the colours."""

    name, num_features, num_classes, num_spatial, resize = "inception", 6, 3, 2, "none"
    sha256, device = "5" * 64, torch.device("cpu")

    def __init__(self, weights: Path, device: torch.device) -> None:
        pass

    def __call__(self, images: torch.Tensor) -> ImageFeatures:
        means, deviations = images.float().mean((2, 3)), images.float().std((2, 3))
        return ImageFeatures(torch.cat((means, deviations), 1), means / 64, deviations[:, :2])


@pytest.fixture
def references(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """References of noise in three colours, by the fake Inception."""
    monkeypatch.setattr("polytoken.metrics.extractors.Inception", Colours)
    np.savez(tmp_path / "real.npz", noise(1200, 0))
    files = {}
    for split in ("train", "validation"):
        files[split] = tmp_path / f"{split}_reference.npz"
        arguments = ("--extractor", "inception", "--npz", str(tmp_path / "real.npz"), "--split", split)
        reference.main([*arguments, "--output", str(files[split])])
    return files


def noise(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3)).astype(np.uint8)


def test_foreign_samples_are_measured_against_a_reference(
    references: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """No preset, judge or labels are needed, under any file name."""
    np.savez(tmp_path / "theirs.npz", noise(1100, 1))
    arguments = ["--samples", str(tmp_path / "theirs.npz"), "--preset", "imagenet"]
    evaluate.main([*arguments, "--reference", str(references["train"])])
    result = json.loads((tmp_path / "theirs_metrics.json").read_text())["evaluate"]
    figures = result["metrics"].pop("samples")
    assert result["metrics"] == {}  # nothing else is measured
    assert set(figures) == {f"{name}/inception" for name in ("gis", "gfid", "gsfid", "precision", "recall", "gkid")}
    assert figures["precision/inception"]["value"] > 0.7 and figures["gis/inception"]["splits"] == "5000 images a split"

    def gaussian(images: np.ndarray, which: int) -> tuple[np.ndarray, np.ndarray]:
        features = Colours(tmp_path, Colours.device)(torch.from_numpy(images).permute(0, 3, 1, 2))[which]
        assert features is not None
        rows = features.double().numpy()
        return rows.mean(0), np.cov(rows, rowvar=False)

    for name, which in (("gfid", 0), ("gsfid", 2)):
        (first, one), (second, other) = gaussian(noise(1100, 1), which), gaussian(noise(1200, 0), which)
        root = np.sqrt(np.linalg.eigvals(one @ other).real.clip(0)).sum()
        expected = np.square(first - second).sum() + np.trace(one + other) - 2 * root
        assert figures[f"{name}/inception"]["value"] == pytest.approx(expected, rel=1e-4)
    for name in ("gfid", "precision", "gkid"):
        assert figures[f"{name}/inception"]["reference_sha256"] == file_sha256(references["train"])
        assert figures[f"{name}/inception"]["reference_kind"] == "train"
    assert result["extractor"] == {"name": "inception", "sha256": "5" * 64, "resize": "none"}
    assert "torch-fidelity" in result["versions"] and result["samples"]["n"] == 1100
    assert "FID" in capsys.readouterr().out


def test_a_reference_of_the_wrong_split_or_size_is_rejected_unless_forced(
    references: dict[str, Path], runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    samples = tmp_path / "samples.npz"
    np.savez(samples, noise(100, 1))
    inception = ("--extractor", "inception", "--reference")
    wrong = (*inception, str(references["validation"]))
    assert "gFID is a distance to training images" in refusal(samples, runs, capsys, *wrong)
    assert not (tmp_path / "metrics.json").exists()
    result = run(samples, runs, *wrong, "--force")
    assert result["reference"]["forced"] is True and result["reference"]["reference_kind"] == "validation"
    assert any("compares with no published one" in note for note in result["notes"])
    result = run(samples, runs, *wrong, "--use", "reconstruction")
    assert result["reference"]["forced"] is False and "rfid/inception" in result["metrics"]["samples"]
    assert result["metrics"]["samples"]["ris/inception"]["splits"] == "10 splits, images dealt out in turn"
    assert any("the reference is of 1200 images where these are 100" in note for note in result["notes"])
    np.savez(samples, noise(1200, 0))
    assert run(samples, runs, *wrong, "--use", "reconstruction")["notes"] == []
    right = (*inception, str(references["train"]))
    assert "validation images that were fed in" in refusal(samples, runs, capsys, *right, "--use", "reconstruction")
    np.savez(samples, noise(10, 1)[:, :4, :4])
    assert "images of 8 px, and these have 4 × 4" in refusal(samples, runs, capsys, *right)
    np.savez(samples, noise(10, 1)[:, :4])
    assert "images of 8 px, and these have 4 × 8" in refusal(samples, runs, capsys, *right)
    assert "no reference at" in refusal(samples, runs, capsys, *inception, str(tmp_path / "none.npz"))
    images, _ = digits("validation")
    np.savez(samples, images)
    assert "measured by inception, not by judge" in refusal(samples, runs, capsys, "--reference", right[-1])


def test_samples_sorted_by_class_are_noted(
    references: dict[str, Path], runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("commands.evaluate.SPLIT", 50)
    arguments = ("--extractor", "inception", "--reference", str(references["train"]))
    for labels, expected in ((np.arange(100) // 10, True), (np.arange(100) % 10, False)):
        np.savez(tmp_path / "samples.npz", noise(100, 1), labels)
        notes = run(tmp_path / "samples.npz", runs, *arguments)["notes"]
        assert any("sorted by class" in note for note in notes) == expected
