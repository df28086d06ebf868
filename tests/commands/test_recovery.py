"""Recovery of the codebooks of a finished tokenizer."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from commands import recovery
from commands.preset import image_data, real_images, spread
from experiments import programs
from polytoken.loading import load_tokenizer
from polytoken.metrics.recovery import Recovery, quantized_features, usage_curve
from tests.support.generated import SCALAR, write_latent_runs, write_runs
from tests.support.recipes import CONFIGS


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def described(run: Path) -> Path:
    """The run with the configuration that `cli.py` leaves."""
    data = yaml.safe_load((CONFIGS / "presets/digits/tokenizer.yaml").read_text())["data"]
    (run / "config.yaml").write_text(yaml.safe_dump({"data": data}))
    return run


def test_curves_are_those_of_the_quantizer_on_training_images(capsys: pytest.CaptureFixture) -> None:
    write_runs(Path("runs/digits"), image_size=32)
    run = described(Path("runs/digits/tokenizer/tiny"))
    options = ["--steps", "3", "--factor", "10", "--batch-size", "4", "--max-images", "8", "--seed", "2"]
    recovery.main(["--run", str(run), *options])
    assert "at the end" in capsys.readouterr().out
    found = json.loads((run / "recovery.json").read_text())

    tokenizer, data = load_tokenizer(run), image_data(run / "config.yaml")
    (batch,) = real_images(data, "train", spread(len(data.source.split("train")), 8))
    features = quantized_features(tokenizer, [batch["image"]])
    settings = Recovery(3, batch_size=4, seed=2)
    for curve, factor in zip(found["curves"], (0.1, 1.0, 10.0), strict=True):
        expected = usage_curve(tokenizer.quantizer, features, factor, settings)
        assert (curve["factor"], curve["usage"]) == (factor, expected.usage)
    metrics = recovery.metrics_of(found)
    assert metrics["val/recovery_smaller/1"] == found["curves"][0]["area"][1]
    assert metrics["val/recovery/1"] == (found["curves"][0]["area"][1] + found["curves"][2]["area"][1]) / 2


def test_a_stage_measures_it(monkeypatch: pytest.MonkeyPatch) -> None:
    write_runs(Path("runs/digits"))
    asked: list[object] = []

    def measured(*given: object, **device: torch.device) -> dict[str, object]:
        asked.extend(given)
        curves = [{"factor": factor, "area": [area]} for factor, area in ((0.2, 0.5), (1.0, 0.9), (5.0, 0.25))]
        return {"curves": curves, "n": 8, "notes": []}

    monkeypatch.setattr("commands.recovery.recovery", measured)
    run = Path("runs/digits/tokenizer/tiny")
    options = ["--factor", "5", "--steps", "7", "--learning-rate", "0.01"]
    programs.main(["recovery", "--run", str(run), *options, "--output", "there"])
    assert asked == [run, Recovery(7, 0.01), 5.0]
    section = json.loads(Path("there/metrics.json").read_text())["validate"]
    assert section["n"] == 8 and section["metrics"] == {
        "val/recovery/0": 0.375,
        "val/recovery_smaller/0": 0.5,
        "val/recovery_larger/0": 0.25,
    }


def test_points_of_a_grid_have_a_note_instead(capsys: pytest.CaptureFixture) -> None:
    write_latent_runs(Path("runs/digits"), SCALAR, image_size=32)
    run = described(Path("runs/digits/tokenizer/tiny"))
    recovery.main(["--run", str(run)])
    assert "there is no codebook to train" in capsys.readouterr().out
    assert recovery.metrics_of(json.loads((run / "recovery.json").read_text())) == {}
    with pytest.raises(SystemExit, match="2"):
        recovery.main(["--run", str(run), "--factor", "0.5"])
    assert "so it is above 1" in capsys.readouterr().err
