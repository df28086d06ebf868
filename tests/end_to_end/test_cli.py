import json
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import cli
from artifacts.completion import changed, completion
from polytoken.files import file_sha256
from tests.support.commands import REPOSITORY, TOY, exit_code, forked, program

RUN = Path("runs/default/toy")
GOES_ON_FROM = ("state_dict", "optimizer_states", "random_state", "global_step", "epoch")
LAST = RUN / "checkpoints" / "last.ckpt"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["cli.py"])


def fit(*arguments: str) -> dict:
    assert exit_code("fit", "--config", TOY, *arguments) == 0
    return state()


def state(path: Path = LAST) -> dict:
    return torch.load(path, weights_only=True)


def assert_equal(one: Any, other: Any, where: str = "checkpoint") -> None:
    """Compare bit for bit all state that training resumes from."""
    if where == "checkpoint":
        one, other = ({key: state[key] for key in GOES_ON_FROM} for state in (one, other))
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_equal(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_equal(*pair, f"{where}[{index}]")
    else:
        assert one == other, where


def test_a_killed_run_resumes_bit_for_bit(tmp_path: Path) -> None:
    assert exit_code("fit", "--config", TOY, "--run.root", "whole") == 0
    expected = state(Path("whole/default/toy/checkpoints/last.ckpt"))

    killed = program("fit", "--config", TOY, cwd=tmp_path, TOY_KILL_AT_STEP="3")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert state()["global_step"] == 3
    assert exit_code("fit", "--config", TOY) == 0
    assert_equal(state(), expected)

    assert sorted(path.name for path in RUN.glob("*.yaml") if "config" in path.name) == [
        "config.yaml",
        "config_resume_1.yaml",
    ]
    assert sorted(path.name for path in LAST.parent.iterdir()) == ["last.ckpt", "previous.ckpt"]
    assert json.loads((RUN / "metrics.json").read_text())["fit"]["global_step"] == 6


@pytest.mark.slow
def test_a_run_is_finished_when_it_has_written_its_marker(tmp_path: Path) -> None:
    fit("--trainer.max_steps", "2")
    marker = completion(RUN)
    assert marker is not None and (marker["command"], marker["step"]) == ("fit", 2)
    assert marker["config"] == file_sha256(RUN / "config.yaml")
    assert marker["files"] == {"checkpoints/last.ckpt": file_sha256(LAST)}
    assert exit_code("validate", "--config", TOY) == 0
    assert completion(RUN) == marker, "a measurement does not train"
    killed = forked("fit", "--config", TOY, cwd=tmp_path, TOY_KILL_AT_STEP="3")
    assert killed.returncode == -signal.SIGKILL and completion(RUN) is None
    assert exit_code("fit", "--config", TOY, "--trainer.fast_dev_run", "true") == 0 and completion(RUN) is None
    fit()
    marker = completion(RUN)
    assert marker is not None and marker["step"] == 6 and changed(RUN, marker) == []


@pytest.mark.slow
def test_a_run_killed_before_its_first_step_interval_resumes_from_a_checkpoint_by_time(tmp_path: Path) -> None:
    by_time = {"class_path": "callbacks.LastCheckpoint", "init_args": {"every_minutes": 1e-6}}
    callbacks = [by_time, {"class_path": "callbacks.RandomState"}]
    Path("slow.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": callbacks, "limit_val_batches": 0}}))
    arguments = ("fit", "--config", TOY, "--config", "slow.yaml")
    killed = forked(*arguments, cwd=tmp_path, TOY_KILL_AT_STEP="5")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert state()["global_step"] == 5
    assert exit_code(*arguments) == 0
    resumed = state()
    assert exit_code("fit", "--config", TOY, "--run.root", "whole") == 0
    assert_equal(resumed, state(Path("whole/default/toy/checkpoints/last.ckpt")))


@pytest.mark.parametrize("stop", [2, 5])
def test_a_run_extended_by_max_steps_equals_a_longer_run(stop: int) -> None:
    assert exit_code("fit", "--config", TOY, "--run.root", "whole", "--model.manual", "true") == 0
    expected = state(Path("whole/default/toy/checkpoints/last.ckpt"))
    assert fit("--trainer.max_steps", str(stop), "--model.manual", "true")["global_step"] == stop
    assert_equal(fit("--model.manual", "true"), expected)


def test_validation_between_steps_does_not_change_training() -> None:
    with_validation = fit()
    assert exit_code("fit", "--config", TOY, "--run.root", "without", "--trainer.limit_val_batches", "0") == 0
    assert_equal(with_validation, state(Path("without/default/toy/checkpoints/last.ckpt")))


def test_starting_a_finished_run_again_changes_nothing() -> None:
    before = fit()
    metrics = json.loads((RUN / "metrics.json").read_text())
    assert_equal(fit(), before)
    again = json.loads((RUN / "metrics.json").read_text())
    assert again["fit"] == metrics["fit"]
    assert again["validate"]["global_step"] == metrics["validate"]["global_step"] == 6


def test_a_changed_model_is_rejected_before_training(capsys: pytest.CaptureFixture) -> None:
    before = fit("--trainer.max_steps", "3")
    for checkpoint in ([], ["--ckpt_path", str(LAST)]):
        capsys.readouterr()
        assert exit_code("fit", "--config", TOY, *checkpoint, "--model.optimizer.learning_rate", "0.5") == 2
        text = capsys.readouterr().err
        assert "model.init_args.optimizer.learning_rate: 0.02 -> 0.5" in text
        assert "run.stage" in text
    assert_equal(state(), before)
    assert not (RUN / "config_resume_1.yaml").exists()


def test_the_checkpoint_records_the_model_section() -> None:
    model = fit()["model_config"]
    assert model == yaml.safe_load((RUN / "config.yaml").read_text())["model"]
    assert model["init_args"]["tokenizer"]["init_args"]["quantizer"]["init_args"]["codebook_size"] == 8
    assert model["init_args"]["tokenizer"]["init_args"]["width"] == 4  # a default, resolved


def test_other_commands_read_the_checkpoint_of_the_run(capsys: pytest.CaptureFixture) -> None:
    assert exit_code("validate", "--config", TOY) == 2
    assert "run fit with the same configs first" in capsys.readouterr().err
    assert exit_code("validate", "--config", TOY, "--ckpt_path", "null", "--run.root", "untrained") == 0
    fit()
    for command in ("validate", "test", "predict"):
        assert exit_code(command, "--config", TOY) == 0
    sections = json.loads((RUN / "metrics.json").read_text())
    assert sections.keys() == {"fit", "validate", "test"}
    assert sections["validate"]["global_step"] == 6
    untrained = json.loads(Path("untrained/default/toy/metrics.json").read_text())["validate"]
    assert untrained["metrics"]["val/loss"] != sections["validate"]["metrics"]["val/loss"]


def test_callbacks_are_appended_over_several_files(capsys: pytest.CaptureFixture) -> None:
    for name in ("one", "two"):
        content = {"trainer": {"callbacks+": [{"class_path": "lightning.pytorch.callbacks.ModelSummary"}]}}
        Path(f"{name}.yaml").write_text(yaml.safe_dump({**content, "run": {"stage": name}}))
    assert exit_code("fit", "--config", "one.yaml", "--config", "two.yaml", "--print_config") == 0
    config = yaml.safe_load(capsys.readouterr().out)
    names = [callback["class_path"].rsplit(".", 1)[1] for callback in config["trainer"]["callbacks"]]
    assert names[0] == "LastCheckpoint" and names[-2:] == ["ModelSummary", "ModelSummary"]
    assert config["run"]["stage"] == "two"
    assert config["ckpt_path"] == "last" and config["weights_only"] is True


@pytest.mark.parametrize(("command", "hours"), [("fit", 0.5), ("test", 24)])
def test_ranks_wait_long_where_they_have_different_numbers_of_batches(
    command: str, hours: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks = ["--trainer.devices", "2", "--trainer.accelerator", "cpu", "--trainer.strategy"]
    monkeypatch.setattr(cli.CommandLine, "_run_subcommand", lambda self, subcommand: None)
    chosen = {"class_path": "DDPStrategy", "init_args": {"timeout": "0:20:00"}}
    for strategy, expected in (("ddp", hours), (json.dumps(chosen), 1 / 3)):
        arguments = [command, "--config", TOY, "--ckpt_path", "null", *ranks, strategy]
        assert cli.CommandLine(arguments).trainer.strategy._timeout == timedelta(hours=expected)


@pytest.mark.slow
def test_help_imports_no_library_that_it_does_not_need(tmp_path: Path) -> None:
    code = (
        "import sys, lightning.pytorch.cli; before = set(sys.modules); sys.argv[0] = 'cli.py'\n"
        "import cli\n"
        "try: cli.main(['fit', '--help'])\n"
        "except SystemExit: pass\n"
        "packages = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "print('IMPORTED', *sorted(packages))"
    )
    result = program_of(code)
    assert "--trainer.max_steps" in result and "--run.stage" in result
    imported = set(result.split("IMPORTED")[1].split())
    heavy = {"timm", "open_clip", "lpips", "datasets", "sklearn", "skimage", "torch_fidelity", "transformers"}
    assert not imported & heavy, sorted(imported)


def program_of(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout
