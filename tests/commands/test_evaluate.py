"""Evaluation of samples: figures against known answers, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from commands import evaluate
from datamodules import DigitsSource
from datamodules.samples import file_digest
from metrics.frechet import FeatureStatistics, frechet_distance
from metrics.images import as_displayed
from models.classifier import SmallClassifier
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


def test_real_validation_images_as_samples_are_as_good_as_real(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    images, labels = digits("validation")
    np.savez(tmp_path / "samples.npz", images, labels)
    result = run(tmp_path / "samples.npz", runs)
    samples, real = result["figures"]["samples"], result["figures"]["validation"]
    assert samples["gfd/judge"]["value"] == pytest.approx(0, abs=1e-6)
    assert samples["recognised/judge"]["value"] == real["recognised/judge"]["value"]
    assert samples["gis/judge"]["value"] == pytest.approx(real["is/judge"]["value"])
    assert samples["gfd/judge"]["n"] == samples["gfd/judge"]["reference_n"] == 355
    assert samples["gfd/judge"]["reference"] == "digits validation images"
    assert result["samples"]["sha256"] == file_digest(tmp_path / "samples.npz")
    assert result["judge"]["sha256"] == file_digest(runs / "digits/teacher/judge.safetensors")
    assert result["samples"]["settings"] is None
    assert any("no reconstructions" in note for note in result["notes"])
    assert "real, validation" in capsys.readouterr().out


def test_distance_and_share_are_those_of_the_judge(runs: Path, tmp_path: Path) -> None:
    images, labels = digits("train")
    noisy = np.clip(images.astype(int) + np.random.default_rng(0).integers(-60, 60, images.shape), 0, 255)[:300]
    np.savez(tmp_path / "samples.npz", noisy.astype(np.uint8), labels[:300])
    result = run(tmp_path / "samples.npz", runs)["figures"]

    judge = SmallClassifier.load(runs / "digits/teacher/judge.safetensors")

    def statistics(pixels: np.ndarray) -> FeatureStatistics:
        features = FeatureStatistics(32)
        for batch in DataLoader(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1, 64):
            features.update(judge.embed(as_displayed(batch)))
        return features

    expected = frechet_distance(
        statistics(noisy.astype(np.uint8)).compute(), statistics(digits("validation")[0]).compute()
    )
    assert result["samples"]["gfd/judge"]["value"] == pytest.approx(float(expected), rel=1e-5)
    inputs = torch.from_numpy(noisy).permute(0, 3, 1, 2).float() / 127.5 - 1
    share = (judge(inputs).argmax(1).numpy() == labels[:300]).mean()
    assert result["samples"]["recognised/judge"]["value"] == pytest.approx(share)
    assert result["train"]["fd/judge"]["n"] == 300  # as many as there are samples
    assert 0 < result["train"]["fd/judge"]["value"] < result["samples"]["gfd/judge"]["value"]


def test_settings_come_from_the_file_beside_the_samples(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    images, labels = digits("validation")
    np.savez(tmp_path / "samples.npz", images[:40], labels[:40])
    made = {
        "settings": {"sampler": {"guidance": 2.0}, "tokenizer": {"run": "gone", "fingerprint": "0"}},
        "sha256": file_digest(tmp_path / "samples.npz"),
        "class_names": [str(digit) for digit in range(10)],
    }
    (tmp_path / "samples.json").write_text(json.dumps(made))
    (tmp_path / "metrics.json").write_text('{"test": {"kept": 1}}')
    assert run(tmp_path / "samples.npz", runs)["samples"]["settings"] == made["settings"]
    assert json.loads((tmp_path / "metrics.json").read_text())["test"] == {"kept": 1}
    (tmp_path / "samples.json").write_text(json.dumps({**made, "class_names": ["zero"]}))
    assert "class 0 is zero in" in refusal(tmp_path / "samples.npz", runs, capsys)
    (tmp_path / "samples.json").write_text(json.dumps({**made, "sha256": "0"}))
    assert "another digest" in refusal(tmp_path / "samples.npz", runs, capsys)


def test_few_samples_and_unknown_labels_are_said(runs: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "samples.npz", digits("validation")[0][:20])
    result = run(tmp_path / "samples.npz", runs)
    assert result["figures"]["samples"]["recognised/judge"]["value"] is None
    assert any("20 samples for 32 features" in note for note in result["notes"])
    assert any("no labels" in note for note in result["notes"])


def test_what_does_not_fit_is_refused_with_both_sides(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    images, labels = digits("validation")
    small, wrong, floats, short = (tmp_path / name for name in ("small.npz", "wrong.npz", "floats.npz", "short.npz"))
    np.savez(small, images[:, ::2, ::2], labels)
    assert "16 × 16 px, and the images of digits have 32 × 32" in refusal(small, runs, capsys)
    np.savez(wrong, images, labels + 3)
    assert "holds label 12, and the judge" in refusal(wrong, runs, capsys)
    np.savez(floats, images / 255, labels)
    assert "float64" in refusal(floats, runs, capsys)
    short.write_bytes(small.read_bytes()[:-30])
    assert "not a file of samples" in refusal(short, runs, capsys)
    assert "no samples at" in refusal(tmp_path / "none.npz", runs, capsys)
    assert "no preset cats" in refusal(small, runs, capsys, "--preset", "cats")
    assert "imagenet has no judge" in refusal(small, runs, capsys, "--preset", "imagenet")
    assert "make teacher" in refusal(small, tmp_path / "empty", capsys)
