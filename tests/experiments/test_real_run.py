import csv
import json
from contextlib import redirect_stderr, redirect_stdout
from math import log
from pathlib import Path
from types import SimpleNamespace
from typing import TextIO

import pytest
import yaml

from commands import evaluate
from experiments import start
from experiments.__main__ import main
from experiments.schedule import Missing
from tests.support.commands import exit_code
from tests.support.experiments import STAGED, write_experiment
from tests.support.recipes import write_judge


@pytest.fixture(autouse=True)
def in_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The programs of a stage run in this process, to save imports; test_run.py starts processes."""

    def here(command: list[str], stdout: TextIO, **_: object) -> SimpleNamespace:
        with redirect_stdout(stdout), redirect_stderr(stdout):
            if command[1] == "-m":
                evaluate.main(command[3:])
                return SimpleNamespace(wait=lambda: 0)
            code = exit_code(*command[2:])
        return SimpleNamespace(wait=lambda: code)

    def run_here(todo: Missing, *_: object) -> None:
        for run, label in todo.values():
            start.write(run, label)
            start.start(run.directory)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["cli.py"])
    monkeypatch.setattr("experiments.start.subprocess", SimpleNamespace(Popen=here, STDOUT=None))
    monkeypatch.setattr("experiments.schedule.run_all", run_here)
    write_judge(tmp_path / "runs/digits/teacher/judge.safetensors")


@pytest.mark.slow
def test_a_failing_row_does_not_stop_the_other(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """One row trains two steps with a term set to null; the other fails without its judge."""
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


@pytest.mark.slow
def test_a_row_runs_from_tokenizer_to_sample_metrics(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Stages find their inputs, and the table finds the metrics."""
    one = "{trainer.max_steps: 1, trainer.val_check_interval: 1}"
    few = "{data.init_args.num_images: 20, data.init_args.batch_size: 20, data.init_args.part_size: 20}"
    small = "tokenizer: {trainer.max_steps: 1, trainer.val_check_interval: 1, trainer.limit_val_batches: 2, "
    changes = (
        ("tokenizer: {trainer.max_steps: 2, ", small),
        ("stage2: {trainer.max_steps: 3}", f"stage2: {one}\n  stage1: {one}\n  generator: {one}\n  samples: {few}"),
    )
    text = STAGED[: STAGED.index("  - label: noisy")]
    file = str(write_experiment(tmp_path, *changes, text=text))
    assert main(["run", file]) == 0, capsys.readouterr().out
    assert main(["show", file]) == 0
    with Path("runs/experiments/results/paper/table_digits.csv").open() as content:
        records = {(record["row"], record["metric"]): record for record in csv.DictReader(content)}
    assert len(records) == 6
    for row in ("from scratch", "staged"):
        assert records[row, "gfd/judge"]["n"] == "20" and float(records[row, "gfd/judge"]["value"]) > 0
        assert float(records[row, "val/nll"]["value"]) == pytest.approx(log(64), abs=0.1), "hardly trained"
        assert records[row, "val/nll"]["n"] == "355" and records[row, "val/psnr"]["n"] == "64"
    lineage = json.loads((Path(records["staged", "val/nll"]["run"]) / "lineage.json").read_text())
    assert "/stage1/stage1/" in lineage["init_from"]["path"]
