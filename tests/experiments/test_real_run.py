import json
from pathlib import Path

import pytest
import yaml

from experiments.__main__ import main
from tests.support.experiments import write_experiment
from tests.support.recipes import write_judge


@pytest.mark.slow
def test_two_rows_through_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """One row trains two steps with a term set to null, the other cannot: its judge is missing."""
    monkeypatch.chdir(tmp_path)
    write_judge(tmp_path / "runs/digits/teacher/judge.safetensors")
    missing = "model.init_args.objective.perceptual.init_args.weights: missing.safetensors"
    plain = "{stage: tokenizer, recipe: vq, preset_file: tokenizer"
    file = str(write_experiment(tmp_path, (plain, f"{plain}, overrides: {{{missing}}}")))

    assert main(["run", file]) == 1
    printed = capsys.readouterr().out
    assert "plain, seed 0, tokenizer: FAILED" in printed and "missing.safetensors" in printed
    assert "without pictures, seed 0, tokenizer: done in" in printed

    (metrics,) = Path("runs/experiments/digits/tokenizer/vq").glob("*/seed_0/metrics.json")
    sections = json.loads(metrics.read_text())
    assert sections["validate"]["global_step"] == 2
    config = yaml.safe_load((metrics.parent / "config.yaml").read_text())
    assert config["model"]["init_args"]["objective"]["perceptual"] is None
    assert config["data"]["init_args"]["seed"] == config["seed_everything"] == 0

    assert main(["show", file, "--markdown"]) == 0
    expected = f"| without pictures | {sections['validate']['metrics']['val/psnr']:.4g} | — |"
    assert expected in capsys.readouterr().out
