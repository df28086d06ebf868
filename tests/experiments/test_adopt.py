"""Adoption of runs by hand that have the configuration of a stage."""

import fcntl
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from artifacts.completion import finish
from commands.cli.runs import place_outputs
from experiments import tasks
from experiments.__main__ import main
from experiments.adopt import adopt
from experiments.check import compose
from experiments.specification import load
from experiments.tasks import Run, expand, runs_of
from tests.support.commands import exit_code
from tests.support.experiments import PROGRAM, STAGED, write_experiment
from tests.support.recipes import write_judge

CHANGES = (("{stage: stage2, overrides: {model.init_args.generator.init_args.noise: null}}", "stage: stage2"),)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def record(run: Run, hand: Path, change: Callable[[dict], None] = lambda config: None) -> None:
    """Record a run by hand as `cli.py` does: a whole configuration with its own places."""
    config = compose(run)
    config["run"] = {"root": "runs", "preset": run.preset, "stage": hand.name}
    config["trainer"]["enable_progress_bar"] = True
    place_outputs(config["trainer"], hand)
    change(config)
    hand.mkdir(parents=True)
    (hand / "config.yaml").write_text(yaml.safe_dump(config))
    section = {"metrics": {"val/psnr": 30.0}, "global_step": config["trainer"]["max_steps"]}
    (hand / "metrics.json").write_text(json.dumps({"validate": section}))
    finish(hand, "fit", yaml.safe_dump(config), [hand / "metrics.json"])


def rows() -> list[Run]:
    return runs_of(load(str(write_experiment(Path(), *CHANGES, text=STAGED))).rows[1], "digits", 0)


def adopted() -> dict[Path, Path]:
    return adopt(expand(load("paper/table.yaml"), 1))


@pytest.mark.slow
def test_a_run_by_hand_is_adopted(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, _, _, _, _ = rows()
    hand = Path("runs/digits/tokenizer/fq_dual")
    record(tokenizer, hand)
    assert adopted() == {tokenizer.directory: hand}
    assert tokenizer.state == "done" and tokenizer.directory.resolve() == hand.resolve()
    assert adopted() == {}

    program = Path("program.py").absolute()
    program.write_text(PROGRAM)
    monkeypatch.setattr(tasks, "PROGRAM", program)
    monkeypatch.setattr(tasks, "EVALUATION", (str(program),))
    monkeypatch.setattr("experiments.__main__.check", lambda *_: set())
    assert main(["run", "paper/table.yaml"]) == 0
    assert str(tokenizer.directory) not in Path("starts.txt").read_text()
    assert json.loads((hand / "metrics.json").read_text())["validate"]["metrics"] == {"val/psnr": 30.0}
    assert "30" in Path("runs/experiments/results/paper/table_digits.csv").read_text()


@pytest.mark.slow
def test_a_real_run_by_hand_is_adopted_until_it_is_trained_further(monkeypatch: pytest.MonkeyPatch) -> None:
    write_judge(Path("runs/digits/teacher/judge.safetensors"))
    (run,) = runs_of(load(str(write_experiment(Path()))).rows[1], "digits", 0)
    run.write_overrides(Path("overrides.yaml"))
    monkeypatch.setattr("sys.argv", ["cli.py"])
    arguments = run.arguments(Path("overrides.yaml"))
    for option, value in (("--run.root", "runs"), ("--run.stage", "tokenizer/vq")):
        arguments[arguments.index(option) + 1] = value
    assert exit_code(*arguments) == 0
    assert adopted() == {run.directory: Path("runs/digits/tokenizer/vq")}
    assert run.state == "done" and not run.directory.readlink().is_absolute()
    assert main(["show", "paper/table.yaml"]) == 0 and run.directory.is_symlink()
    assert exit_code(*arguments, "--trainer.max_steps", "3") == 0
    assert main(["show", "paper/table.yaml"]) == 0 and not run.directory.is_symlink(), "the longer run's numbers"
    assert adopted() == {}


def test_links_of_all_seeds_are_dropped_and_one_that_stays_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The results of all seeds are written, whatever --seeds names."""
    write_experiment(Path())
    for task in expand(load("paper/table.yaml"), 2):
        task.runs[0].directory.parent.mkdir(parents=True, exist_ok=True)
        task.runs[0].directory.symlink_to(Path("runs/digits/tokenizer/deleted").absolute())
    links = [*Path("runs").rglob("seed_?")]
    unlink = Path.unlink

    def refuse(path: Path, **options: bool) -> None:
        if path in links:
            raise PermissionError(13, "Permission denied")
        unlink(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        assert main(["status", "paper/table.yaml", "--seeds", "1"]) == 0
    said = capsys.readouterr().err
    assert all(
        f"warning: {link} links to a run that has changed since, and cannot be removed (P" in said for link in links
    )
    assert main(["status", "paper/table.yaml", "--seeds", "1"]) == 0 and capsys.readouterr().err == ""
    assert len(links) == 4 and not any(link.is_symlink() for link in links)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("machine", "alike"),
    [
        (
            {"devices": "1", "plugins": [{"class_path": "SLURMEnvironment"}], "strategy": "ddp", "accelerator": "gpu"},
            True,
        ),
        ({"devices": "2"}, False),
        ({"num_nodes": 2}, False),
    ],
)
def test_a_run_of_another_machine_is_adopted_with_as_many_processes(machine: dict, alike: bool) -> None:
    tokenizer, *_ = rows()
    record(tokenizer, Path("runs/digits/tokenizer/fq_dual"), lambda config: config["trainer"].update(machine))
    assert [*adopted()] == ([tokenizer.directory] if alike else [])


@pytest.mark.slow
def test_a_stage_locked_by_another_process_is_not_replaced() -> None:
    tokenizer, *_ = rows()
    record(tokenizer, Path("runs/digits/tokenizer/fq_dual"))
    tokenizer.directory.mkdir(parents=True)
    with tokenizer.log.open("a") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        assert adopted() == {}
    assert [*adopted()] == [tokenizer.directory]


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        lambda config: config.update(seed_everything=1),
        lambda config: config["data"]["init_args"].update(seed=1),
        lambda config: config["trainer"].update(max_steps=3),
        lambda config: config["trainer"]["callbacks"].pop(),
        lambda config: config["model"]["init_args"]["optimizer"].update(learning_rate=0.5),
    ],
)
def test_a_run_of_another_configuration_is_not_adopted(change: Callable[[dict], None]) -> None:
    tokenizer, *_ = rows()
    record(tokenizer, Path("runs/digits/tokenizer/fq_dual"), change)
    assert adopted() == {} and tokenizer.state == "missing"


@pytest.mark.slow
def test_a_run_on_other_codes_is_not_adopted() -> None:
    *_, generator, _ = runs_of(load(str(write_experiment(Path(), *CHANGES, text=STAGED))).rows[0], "digits", 0)
    hand = Path("runs/digits/far_base/fq_dual")
    record(generator, hand, lambda config: config["data"]["init_args"].update(store="runs/digits/tokens/vq"))
    assert adopted() == {}
    for file in (hand / "config.yaml", hand / "metrics.json", hand / "done.json"):
        file.unlink()
    hand.rmdir()
    record(generator, hand)  # the very store that the row's own tokens are to be
    assert adopted() == {generator.directory: hand}
