"""Every YAML that ships is parsed, instantiated and, at the size of the digits, trained for two steps."""

import json
from pathlib import Path

import pytest
import torch

import cli
from models.weights import load_state
from tests.support.commands import exit_code
from tests.support.recipes import CONFIGS, digits, write_judge

TOKENIZERS = ["fq_dual", "fq_quad", "fq_triple", "vq"]
OTHERS = ["analysis", "base", "judge"]
PRESETS = sorted(path.parent.name for path in CONFIGS.glob("presets/*/tokenizer.yaml"))


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["cli.py"])


def test_no_recipe_is_forgotten() -> None:
    assert sorted(path.stem for path in CONFIGS.glob("*.yaml")) == sorted(TOKENIZERS + OTHERS)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("recipe", TOKENIZERS)
def test_recipe_with_preset_is_built_on_the_meta_device(
    recipe: str, preset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parsed and instantiated whole, big networks without memory; stopped before anything runs."""
    built = []

    def stop(self: cli.CommandLine) -> None:
        built.append(self.model)
        raise SystemExit(0)

    monkeypatch.setattr(cli.CommandLine, "before_fit", stop, raising=False)
    arguments = [
        "--config",
        str(CONFIGS / f"{recipe}.yaml"),
        "--config",
        str(CONFIGS / f"presets/{preset}/tokenizer.yaml"),
    ]
    arguments += ["--trainer.devices", "1", "--trainer.strategy", "auto", "--data.init_args.num_workers", "0"]
    if preset == "imagenet":
        (Path("images/train/n01")).mkdir(parents=True)
        arguments += ["--data.init_args.source.init_args.root", "images"]
    with torch.device("meta"):
        assert exit_code("fit", *arguments) == 0
    assert next(built[0].parameters()).device.type == "meta"
    assert built[0].tokenizer.spec.num_codebooks == {"vq": 1, "fq_dual": 2, "fq_triple": 3, "fq_quad": 4}[recipe]


@pytest.mark.parametrize("recipe", TOKENIZERS)
def test_two_steps_on_digits(recipe: str, tmp_path: Path) -> None:
    judge = write_judge(tmp_path / "runs/digits/teacher/judge.safetensors")
    overrides = ["--trainer.max_steps", "2", "--trainer.val_check_interval", "2"]
    overrides += ["--data.init_args.batch_size", "4", "--model.init_args.objective.adversarial.start_step", "1"]
    overrides += ["--trainer.limit_val_batches", "2"]
    assert exit_code("fit", *digits(recipe, judge), *overrides) == 0
    run = tmp_path / "runs/digits/tokenizer" / recipe
    assert torch.load(run / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 2
    assert {"config.yaml", "metrics.json", "reconstructions.png"} <= {path.name for path in run.iterdir()}


def test_validate_measures_the_average_in_the_checkpoint(tmp_path: Path) -> None:
    """What `validate` reports of a checkpoint is what the run itself reported at its end."""
    judge = write_judge(tmp_path / "runs/digits/teacher/judge.safetensors")
    overrides = ["--trainer.max_steps", "3", "--trainer.val_check_interval", "2", "--trainer.limit_val_batches", "2"]
    overrides += ["--data.init_args.batch_size", "4"]

    def measured() -> dict:
        return json.loads((tmp_path / "runs/digits/tokenizer/fq_dual/metrics.json").read_text())["validate"]

    assert exit_code("fit", *digits("fq_dual", judge), *overrides) == 0
    of_the_run = measured()
    assert exit_code("validate", *digits("fq_dual", judge), *overrides) == 0
    of_the_checkpoint = measured()
    assert of_the_run["global_step"] == of_the_checkpoint["global_step"] == 3
    for name in ("val/psnr", "val/ssim", "val/usage/0", "val/judge_accuracy"):
        assert of_the_checkpoint["metrics"][name] == pytest.approx(of_the_run["metrics"][name], abs=1e-6), name


def test_f8_is_the_published_model(monkeypatch: pytest.MonkeyPatch) -> None:
    built = []

    def stop(self: cli.CommandLine) -> None:
        built.append(self.model.tokenizer)
        raise SystemExit(0)

    monkeypatch.setattr(cli.CommandLine, "before_fit", stop, raising=False)
    presets = [CONFIGS / "presets/imagenet/tokenizer.yaml", CONFIGS / "presets/imagenet/f8.yaml"]
    arguments = [
        "--config",
        str(CONFIGS / "fq_triple.yaml"),
        *(part for path in presets for part in ("--config", str(path))),
    ]
    with torch.device("meta"):
        assert exit_code("fit", *arguments, "--trainer.devices", "1", "--trainer.strategy", "auto") == 0
    assert sum(parameter.numel() for parameter in built[0].parameters()) == 131_063_963
    assert built[0].spec.num_positions == 1024


@pytest.mark.parametrize("preset", sorted(path.parent.name for path in CONFIGS.glob("presets/*/judge.yaml")))
def test_two_steps_of_the_judge_and_again(preset: str, tmp_path: Path) -> None:
    """A finished judge can be started again: it is measured and written once more."""
    arguments = ["--config", str(CONFIGS / "judge.yaml"), "--config", str(CONFIGS / f"presets/{preset}/judge.yaml")]
    arguments += ["--trainer.max_steps", "2", "--trainer.val_check_interval", "2"]
    written = tmp_path / f"runs/{preset}/teacher/judge.safetensors"
    for _ in range(2):
        assert exit_code("fit", *arguments) == 0
        accuracy = load_state(written, "")[1]["accuracy"]
        written.unlink()
    metrics = json.loads((tmp_path / f"runs/{preset}/teacher/judge/metrics.json").read_text())
    assert metrics["validate"]["metrics"]["val/accuracy"] == pytest.approx(accuracy)
    assert metrics["validate"]["global_step"] == 2
