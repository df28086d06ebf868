"""Every shipped YAML file is parsed, instantiated and, at the size of the digits, trained for two steps."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import torch
import yaml

import cli
from polytoken.blocks import SpatialAttention
from polytoken.specs import TokenSpec
from polytoken.teachers import Teacher
from polytoken.weights import load_state
from tests.support.commands import REPOSITORY, exit_code
from tests.support.recipes import CONFIGS, PRESETS, TOKENIZERS, digits, preset_files, write_judge
from tests.support.slow import slow_but

NUM_SUB_CODES = {"vq": 1, "fq_dual": 2, "fq_triple": 3, "fq_quad": 4}  # as the papers name them


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["cli.py"])


def test_overlays_are_named_after_recipes() -> None:
    """`presets/<preset>/<name>.yaml` without a recipe `<name>` would never be used."""
    for path in CONFIGS.glob("presets/*/*.yaml"):
        shared = ("tokenizer", "folded", "representation", "generator", "caption", "f8")
        recipe = re.sub("^(sample|tokens)_", "", path.stem)  # how a preset samples, encodes by a recipe
        assert path.stem in shared or (CONFIGS / f"{recipe}.yaml").exists(), path


@pytest.mark.skipif(not (REPOSITORY / ".git").exists(), reason="git knows the shipped presets")
def test_all_shipped_presets_are_tested() -> None:
    files = subprocess.check_output(["git", "ls-files", "configs/presets"], cwd=REPOSITORY, text=True).split()
    assert sorted({Path(file).parts[2] for file in files}) == PRESETS


@pytest.mark.parametrize("preset", slow_but(("digits",), PRESETS))
@pytest.mark.parametrize("recipe", TOKENIZERS)
def test_recipe_with_preset_is_built_on_the_meta_device(
    recipe: str, preset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole configuration is parsed and instantiated, networks without memory; nothing runs."""
    if preset != "imagenet":
        write_judge(Path(f"runs/{preset}/teacher/judge.safetensors"), side=64 if preset == "photos" else 32)
    commands: list[cli.CommandLine] = []

    def stop(self: cli.CommandLine) -> None:
        commands.append(self)
        raise SystemExit(0)

    monkeypatch.setattr(cli.CommandLine, "before_fit", stop, raising=False)
    files = [str(CONFIGS / f"{recipe}.yaml"), *preset_files(recipe, preset)]
    arguments = [part for file in files for part in ("--config", file)]
    arguments += ["--trainer.devices", "1", "--trainer.strategy", "auto", "--data.init_args.num_workers", "0"]
    if preset == "imagenet":
        (Path("images/train/n01")).mkdir(parents=True)
        arguments += ["--data.init_args.source.init_args.root", "images"]
    with torch.device("meta"):
        assert exit_code("fit", *arguments) == 0
    assert next(commands[0].model.parameters()).device.type == "meta"
    spec = commands[0].model.tokenizer.spec
    if recipe in NUM_SUB_CODES:
        assert spec.num_sub_codes == NUM_SUB_CODES[recipe]
    if preset == "imagenet":
        whole = recipe in ("ae", "vae", "fsq", "ifsq")  # iFSQ's script crops the shorter side of 256 px
        assert commands[0].datamodule.training_transform.crop_fraction == (1.0 if whole else 0.8, 1.0)
    if preset == "imagenet" and "global batch" in (CONFIGS / f"{recipe}.yaml").read_text():
        stated = int(re.search(r"global batch (\d+)", (CONFIGS / f"{recipe}.yaml").read_text())[1])
        assert commands[0].datamodule.batch_size * 8 == stated


def test_the_schedule_of_imagefolders_discriminator_starts_with_it() -> None:
    """On ImageNet, as released: epoch 56, and 2 % of 200 epochs of warm-up."""
    files = [CONFIGS / "imagefolder.yaml", *map(Path, preset_files("imagefolder", "imagenet"))]
    recipe, preset = (yaml.safe_load(file.read_text())["model"]["init_args"] for file in files)
    schedule = preset["discriminator_optimizer"]
    assert schedule["start_step"] == recipe["objective"]["adversarial"]["start_step"] == 56 * 1250
    assert schedule["warmup_steps"] == 0.02 * 200 * 1250


@pytest.mark.parametrize("recipe", slow_but(("fq_dual", "imagefolder"), TOKENIZERS))
def test_two_steps_on_digits(recipe: str, tmp_path: Path) -> None:
    judge = write_judge(tmp_path / "runs/digits/teacher/judge.safetensors")
    overrides = ["--trainer.max_steps", "2", "--trainer.val_check_interval", "2"]
    overrides += ["--data.init_args.batch_size", "4", "--model.init_args.objective.adversarial.start_step", "1"]
    overrides += ["--trainer.limit_val_batches", "2"]
    assert exit_code("fit", *digits(recipe, judge), *overrides) == 0
    run = tmp_path / "runs/digits/tokenizer" / recipe
    assert torch.load(run / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 2
    assert {"config.yaml", "metrics.json", "reconstructions.png"} <= {path.name for path in run.iterdir()}


@pytest.mark.slow
def test_validate_measures_the_average_in_the_checkpoint(tmp_path: Path) -> None:
    """`validate` reports the same metrics as the end of the run."""
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


def test_f8_matches_the_published_model(monkeypatch: pytest.MonkeyPatch) -> None:
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


@pytest.mark.parametrize("preset", slow_but(("digits",), ("digits", "photos")))
@pytest.mark.parametrize("teacher", ["mid", "high", "dual"])
def test_two_steps_of_a_teacher(preset: str, teacher: str, tmp_path: Path) -> None:
    recipe = f"teacher_{teacher}.yaml"
    arguments = ["--config", str(CONFIGS / recipe), "--config", str(CONFIGS / f"presets/{preset}/{recipe}")]
    arguments += ["--trainer.max_steps", "2", "--trainer.val_check_interval", "2", "--trainer.limit_val_batches", "1"]
    assert exit_code("fit", *arguments, "--data.init_args.batch_size", "8") == 0
    loaded = Teacher("stand_in", str(tmp_path / f"runs/{preset}/teacher/{teacher}.safetensors"))
    assert loaded.grid == {"digits": (4, 4), "photos": (8, 8)}[preset], "the grid of the tokens"


def test_a_finished_judge_can_be_started_again(tmp_path: Path) -> None:
    """A finished judge, started again, is measured and written once more."""
    arguments = ["--config", str(CONFIGS / "judge.yaml"), "--config", str(CONFIGS / "presets/digits/judge.yaml")]
    arguments += ["--trainer.max_steps", "2", "--trainer.val_check_interval", "2"]
    written = tmp_path / "runs/digits/teacher/judge.safetensors"
    for _ in range(2):
        assert exit_code("fit", *arguments) == 0
        accuracy = load_state(written, "")[1]["accuracy"]
        written.unlink()
    metrics = json.loads((tmp_path / "runs/digits/teacher/judge/metrics.json").read_text())
    assert metrics["validate"]["metrics"]["val/accuracy"] == pytest.approx(accuracy)
    assert metrics["validate"]["global_step"] == 2


def logged_metrics(run: Path) -> set[str]:
    return set(json.loads((run / "metrics.json").read_text())["validate"]["metrics"])


@pytest.mark.slow
def test_metrics_of_scalar_and_continuous_recipes(tmp_path: Path) -> None:
    """Scalar quantizers log the metrics of iFSQ's Fig. 3; a continuous bottleneck logs no counts of codes."""
    judge = write_judge(tmp_path / "runs/digits/teacher/judge.safetensors")
    overrides = ["--trainer.max_steps", "1", "--trainer.limit_val_batches", "1", "--data.init_args.batch_size", "4"]
    for recipe in ("ifsq", "vae"):
        assert exit_code("fit", *digits(recipe, judge), *overrides) == 0
    runs = tmp_path / "runs/digits/tokenizer"
    uniformity = {"val/ks", "val/rmse_uniform", "val/entropy_ratio", "val/bins_hit"}
    assert uniformity | {"val/psnr", "val/ssim", "val/usage/0"} <= logged_metrics(runs / "ifsq")
    assert {"val/psnr", "val/ssim", "train/kl"} <= logged_metrics(runs / "vae") | {
        name for name in json.loads((runs / "vae/metrics.json").read_text())["fit"]["metrics"]
    }
    assert not any("usage" in name or name in uniformity for name in logged_metrics(runs / "vae"))


def test_predict_rejects_an_autoencoder(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    judge = write_judge(tmp_path / "runs/digits/teacher/judge.safetensors")
    overrides = ["--trainer.max_steps", "1", "--trainer.limit_val_batches", "1", "--data.init_args.batch_size", "4"]
    assert exit_code("fit", *digits("ae", judge), *overrides) == 0
    assert exit_code("predict", *digits("ae", judge)) == 2
    error = capsys.readouterr().err
    assert "error: predict stores tokens or draws images, and TokenizerModule does neither" in error
    assert "Traceback" not in error


@pytest.mark.parametrize(("recipe", "alpha"), [("fsq", 2.0), ("ifsq", 1.6)])
def test_scalar_recipes_match_the_paper(recipe: str, alpha: float, monkeypatch: pytest.MonkeyPatch) -> None:
    built = []

    def stop(self: cli.CommandLine) -> None:
        built.append(self)
        raise SystemExit(0)

    monkeypatch.setattr(cli.CommandLine, "before_fit", stop, raising=False)
    Path("images/train/n01").mkdir(parents=True)
    arguments = ["--config", str(CONFIGS / f"{recipe}.yaml")]
    arguments += ["--config", str(CONFIGS / "presets/imagenet/tokenizer.yaml")]
    arguments += ["--trainer.devices", "1", "--trainer.strategy", "auto", "--data.init_args.num_workers", "0"]
    with torch.device("meta"):
        assert exit_code("fit", *arguments, "--data.init_args.source.init_args.root", "images") == 0
    tokenizer = built[0].model.tokenizer
    assert tokenizer.spec == TokenSpec((83521,), ((16, 16),))
    assert tokenizer.quantizer.alpha == alpha
    assert not any(isinstance(module, SpatialAttention) for module in tokenizer.modules())
    assert built[0].datamodule.batch_size * 8 == 128
