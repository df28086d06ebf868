"""`cli.py test` on a generator gives the metrics of `make evaluate`, on one rank and on two."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from callbacks import GenerationMetrics, Requeue
from commands import evaluate, reference
from datamodules import LabelDataModule
from lightning_modules import SamplingModule
from polytoken.sampling import CategoricalSampler
from tests.support.commands import exit_code
from tests.support.generated import write_runs
from tests.support.ranks import two_ranks
from tests.support.recipes import CONFIGS, write_judge
from tests.support.validation import logged_metrics, quiet_trainer


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_judge(Path("runs/digits/teacher/judge.safetensors"))
    for split in ("train", "validation"):
        reference.main(["--split", split, "--images", "200"])
    return write_runs(Path("runs/digits"), image_size=32)


def test_metrics_equal_those_of_the_sample_file(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["cli.py"])
    callback = "--trainer.callbacks.init_args."
    arguments = [
        *("--config", str(CONFIGS / "generation.yaml"), "--config", str(CONFIGS / "presets/digits/sample.yaml")),
        *("--model.init_args.generator_run", str(run), "--trainer.enable_progress_bar", "false"),
        *("--data.init_args.num_images", "50", "--data.init_args.batch_size", "20"),
        *(f"{callback}reference", "runs/digits/reference/train_judge.npz"),
        *(f"{callback}extractor", "judge", f"{callback}weights", "runs/digits/teacher/judge.safetensors"),
        *("--trainer.accelerator", "cpu"),
    ]
    assert exit_code("test", *arguments) == 0
    sections = json.loads(Path("runs/digits/generation/fq_dual/metrics.json").read_text())
    section = sections["evaluate"]

    module = SamplingModule(str(run), CategoricalSampler(guidance=2.0))
    labels = torch.arange(50) % 10
    images = [module.generator.images(labels[i : i + 20], module.sampler, 0, i) for i in (0, 20, 40)]
    np.savez("samples.npz", torch.cat(images).numpy(), labels.numpy())
    evaluate.main(["--samples", "samples.npz", "--reference", "runs/digits/reference/train_judge.npz"])
    expected = json.loads(Path("metrics.json").read_text())["evaluate"]
    for name, figure in expected["metrics"]["samples"].items():
        assert section["metrics"]["samples"][name] == pytest.approx(figure), name
        assert sections["test"]["metrics"][f"test/{name}"] == pytest.approx(figure["value"], rel=1e-5)
    assert "precision/judge" in expected["metrics"]["samples"]
    assert section["extractor"] == expected["extractor"] and section["reference"] == expected["reference"]
    settings = section["samples"]["settings"]
    assert settings["sampler"]["guidance"] == 2.0 and settings["num_images"] == 50
    assert settings["generator"]["averaged"] is False and len(settings["generator"]["sha256"]) == 64


def test_invalid_settings_stop_before_sampling(run: Path, tmp_path: Path) -> None:
    judge = ("judge", "runs/digits/teacher/judge.safetensors")

    def refused(error: type[Exception], says: str, callback: GenerationMetrics) -> None:
        trainer = quiet_trainer(tmp_path, [callback])
        with pytest.raises(error, match=says):
            trainer.test(SamplingModule(str(run)), LabelDataModule(20, part_size=256), verbose=False)

    refused(FileNotFoundError, "no reference at", GenerationMetrics("none.npz", *judge))
    validation = "runs/digits/reference/validation_judge.npz"
    refused(ValueError, "gFID is a distance to training images", GenerationMetrics(validation, *judge))
    refused(FileNotFoundError, "make weights", GenerationMetrics(validation))
    refused(ValueError, "no teacher is called 'dinov9'", GenerationMetrics(validation, "dinov9"))
    trainer = quiet_trainer(tmp_path, [GenerationMetrics(validation, *judge)])
    with pytest.raises(ValueError, match="leave it out"):
        trainer.predict(SamplingModule(str(run)), LabelDataModule(20))
    assert not (tmp_path / "metrics.json").exists()


@pytest.mark.cluster
def test_two_ranks_log_the_metrics_of_one(run: Path, tmp_path: Path) -> None:
    def tested(**arguments: object) -> dict[str, float]:
        judge = ("judge", "runs/digits/teacher/judge.safetensors")
        callback = GenerationMetrics("runs/digits/reference/train_judge.npz", *judge)
        trainer = quiet_trainer(tmp_path, [callback, Requeue()], enable_checkpointing=True, **arguments)
        data = LabelDataModule(50, batch_size=10, part_size=20)  # parts of 20, 20, 10: the ranks have 30 and 20
        trainer.test(SamplingModule(str(run), CategoricalSampler(guidance=2.0)), data, verbose=False)
        return logged_metrics(trainer)

    alone, together = tested(), tested(**two_ranks())
    assert len(alone) == 5 and together.keys() == alone.keys()
    for name, value in alone.items():
        assert together[name] == pytest.approx(value, rel=1e-6), name
