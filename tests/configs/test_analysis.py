"""configs/analysis.yaml and reconstruction.yaml as overlays of a run."""

import json
from pathlib import Path

import pytest
import yaml

from commands.preset import Preset
from polytoken.files import file_sha256
from tests.support.commands import exit_code
from tests.support.recipes import CONFIGS, PRESETS, digits, write_judge


@pytest.mark.slow
def test_analysis_and_reconstruction_overlays_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["cli.py"])
    judge = write_judge(tmp_path / "runs/digits/teacher/judge.safetensors")
    arguments = [*digits("fq_dual", judge), "--trainer.limit_val_batches", "2", "--data.init_args.batch_size", "16"]
    arguments += ["--trainer.max_steps", "1"]
    assert exit_code("fit", *arguments) == 0
    analysis = [f"--config={CONFIGS / name}" for name in ("analysis.yaml", "presets/digits/analysis.yaml")]
    assert exit_code("validate", *arguments, *analysis) == 0
    run = tmp_path / "runs/digits/tokenizer/fq_dual"
    pictures = {
        "affinity.png",
        "code_map.png",
        "components.png",
        "reconstructions.png",
        "subspaces.png",
        "affinity.json",
    }
    assert pictures <= {path.name for path in run.iterdir()}
    metrics = json.loads((run / "metrics.json").read_text())["validate"]["metrics"]
    names = ("cosine/0_1", "silhouette/image/1", "ablation/psnr_only_0", "ablation/rfd/judge_without_1", "rfd/judge")
    assert all(isinstance(metrics[f"val/{name}"], float) for name in names)
    callback, teacher = "--trainer.callbacks.init_args.", str(judge.with_name("mid.safetensors"))
    by_teacher = [f"{callback}extractor", "stand_in", f"{callback}weights", teacher]
    assert exit_code("validate", *arguments, "--config", str(CONFIGS / "reconstruction.yaml"), *by_teacher) == 0
    sections = json.loads((run / "metrics.json").read_text())
    record = sections["reconstruction"]["stand_in"]
    figure = record["metrics"]["reconstructions"]["rfd/stand_in"]
    assert figure["value"] == pytest.approx(sections["validate"]["metrics"]["val/rfd/stand_in"], rel=1e-5)
    assert figure["n"] == sections["validate"]["n"] == 32
    settings = record["samples"]["settings"]
    assert settings["checkpoint_sha256"] == file_sha256(run / "checkpoints/last.ckpt") and settings["averaged"]


@pytest.mark.parametrize("preset", PRESETS)
def test_each_preset_names_the_network_that_measures_it(preset: str) -> None:
    directory = CONFIGS / "presets" / preset
    (callback,) = yaml.safe_load((directory / "analysis.yaml").read_text())["trainer"]["callbacks+"]
    assert callback["class_path"] == "callbacks.SubspaceAblation"
    given = callback.get("init_args", {})
    assert given.get("extractor") == Preset.load(preset).own_network
    if (directory / "judge.yaml").exists():
        judge = yaml.safe_load((directory / "judge.yaml").read_text())
        assert given["weights"] == judge["model"]["init_args"]["output"]
