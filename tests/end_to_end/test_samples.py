"""From a generator's run to samples, metrics and a report, with the user's commands."""

import json
from pathlib import Path

import numpy as np
import pytest

from commands import evaluate
from commands.report.__main__ import main as write_report
from tests.support.commands import exit_code
from tests.support.generated import write_runs
from tests.support.recipes import CONFIGS, write_judge

FILES = ("--config", str(CONFIGS / "sample.yaml"), "--config", str(CONFIGS / "presets/digits/sample.yaml"))


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["cli.py"])


def predict(run: Path, *more: str) -> int:
    few = ("--data.num_images", "40", "--data.batch_size", "20")
    quiet = ("--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu")
    return exit_code("predict", *FILES, "--model.generator_run", str(run), *few, *quiet, *more)


def test_samples_are_written_measured_and_reported(capsys: pytest.CaptureFixture) -> None:
    write_judge(Path("runs/digits/teacher/judge.safetensors"))
    run = write_runs(Path("runs/digits"), image_size=32)
    assert predict(run) == 0
    samples = Path("runs/digits/samples/fq_dual/samples.npz")
    with np.load(samples, allow_pickle=False) as archive:
        assert archive["arr_0"].shape == (40, 32, 32, 3)
        assert np.bincount(archive["arr_1"]).tolist() == [4] * 10
    settings = json.loads(samples.with_suffix(".json").read_text())["settings"]
    assert settings["sampler"]["guidance"] == 2.0
    assert predict(run) == 0  # nothing left to do

    evaluate.main(["--samples", str(samples)])
    result = json.loads(samples.with_name("metrics.json").read_text())["evaluate"]
    assert result["samples"]["settings"] == settings
    assert set(result["metrics"]) == {"samples", "validation", "train", "reconstructions"}
    assert result["metrics"]["reconstructions"]["rfd/judge"]["value"] > 0
    write_report([])
    assert ">reconstructions</th>" in Path("runs/digits/report.html").read_text()


@pytest.mark.parametrize("preset", ["digits", "photos", "imagenet"])
def test_the_settings_of_every_preset_are_valid(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import cli

    run = write_runs(Path("runs/any"))
    built = []

    def stop(self: cli.CommandLine) -> None:
        built.append(self)
        raise SystemExit(0)

    monkeypatch.setattr(cli.CommandLine, "before_predict", stop, raising=False)
    files = ("--config", str(CONFIGS / "sample.yaml"), "--config", str(CONFIGS / f"presets/{preset}/sample.yaml"))
    one = ("--trainer.devices", "1", "--trainer.strategy", "auto", "--model.generator_run", str(run))
    assert exit_code("predict", *files, *one) == 0
    assert built[0].datamodule.num_images >= 280 and built[0].model.sampler.guidance == 2.0


def test_a_missing_run_is_reported_in_one_line(capsys: pytest.CaptureFixture) -> None:
    assert predict(Path("runs/digits/stage2/fq_dual")) == 2
    assert "there is no checkpoint runs/digits/stage2/fq_dual" in capsys.readouterr().err


def test_sampling_a_first_stage_warns(capsys: pytest.CaptureFixture) -> None:
    run = write_runs(Path("runs/digits"), sub_codes=[0], stage="stage1", image_size=32)
    with pytest.warns(UserWarning, match="first stage of a curriculum"):
        assert predict(run) == 0
    assert Path("runs/digits/samples/fq_dual/samples.npz").is_file()


def test_samples_of_other_settings_are_rejected_in_one_sentence(capsys: pytest.CaptureFixture) -> None:
    run = write_runs(Path("runs/digits"), image_size=32)
    assert predict(run, "--data.classes", "[3, 10]") == 2
    assert "error: data.classes names class 10, and the generator knows" in capsys.readouterr().err
    assert predict(run) == 0
    assert predict(run, "--model.sampler.guidance", "3") == 2
    error = capsys.readouterr().err
    assert "samples of other settings: sampler.guidance was 2.0 and is 3.0" in error and "Traceback" not in error
