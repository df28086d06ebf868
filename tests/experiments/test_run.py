import csv
import fcntl
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from math import isnan
from pathlib import Path

import pytest

from artifacts.completion import finish
from experiments import start, tasks
from experiments.__main__ import main
from experiments.specification import Row, Stage, load
from experiments.tasks import mean_of, nested, runs_of
from tests.support.commands import REPOSITORY, SECONDS
from tests.support.experiments import PROGRAM, write_experiment


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run experiments in an empty directory with a program that takes no time."""
    (tmp_path / "program.py").write_text(PROGRAM)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tasks, "PROGRAM", tmp_path / "program.py")
    monkeypatch.setattr("experiments.__main__.check", lambda *_: set())


def starts() -> Counter[str]:
    return Counter(Path("starts.txt").read_text().split())


def wait_for_start(process: subprocess.Popen) -> None:
    """Wait until a stage of the process has started."""
    while not Path("starts.txt").exists():
        time.sleep(0.01)
        assert process.poll() is None


def directories(stage: Stage, seed: int = 0) -> Path:
    return runs_of(Row("", (stage,)), "digits", seed)[-1].directory


def test_the_directory_identifies_the_run() -> None:
    stage = Stage("tokenizer", "vq", "tokenizer", {"trainer.max_steps": 2, "a.b": None})
    same = Stage("tokenizer", "vq", "tokenizer", {"a": {"b": None}, "trainer": {"max_steps": 2}})
    assert directories(stage) == directories(same)
    assert str(directories(stage)).startswith("runs/experiments/digits/tokenizer/vq/")
    others = [
        directories(stage, seed=1),
        directories(Stage("tokenizer", "vq", "tokenizer", {"trainer.max_steps": 2})),
        directories(Stage("tokenizer", "fq_dual", "tokenizer", stage.overrides)),
        directories(Stage("tokenizer", "vq", "judge", stage.overrides)),
    ]
    assert len({directories(stage), *others}) == 5


def test_the_directory_depends_on_the_content_of_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("trainer: {max_steps: 2}\n")
    monkeypatch.setattr(Stage, "configs", lambda *_: [config])
    before = directories(Stage("tokenizer", "vq", "tokenizer"))
    config.write_text("# A comment.\ntrainer: {max_steps: 2}\n")
    assert directories(Stage("tokenizer", "vq", "tokenizer")) == before
    config.write_text("trainer: {max_steps: 3}\n")
    assert directories(Stage("tokenizer", "vq", "tokenizer")) != before


def test_dotted_keys_become_mappings_and_later_keys_win() -> None:
    assert nested({"a.b.c": 1, "a.b.d": None, "e": [1]}) == {"a": {"b": {"c": 1, "d": None}}, "e": [1]}
    assert nested({"a.b.c": 1, "a.b": None}) == {"a": {"b": None}}
    value = {"class_path": "X"}
    assert nested({"a": value, "a.init_args.x": 1}) == {"a": {"class_path": "X", "init_args": {"x": 1}}}
    assert value == {"class_path": "X"}


def test_a_metric_may_be_a_mean_over_codebooks() -> None:
    metrics = {"val/usage/0": 0.5, "val/usage/1": 1.0, "val/psnr": None}
    assert mean_of(metrics, "val/usage/*") == 0.75
    assert mean_of(metrics, "val/usage/1") == 1.0
    assert isnan(mean_of(metrics, "val/psnr")) and mean_of(metrics, "val/rfd/judge") is None


def test_a_dry_run_only_prints_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["run", str(write_experiment(tmp_path)), "--seeds", "2", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    commands = [shlex.split(line) for line in lines if not line.startswith("#")]
    assert len(commands) == 4 and "'perceptual': None" in lines[3]
    assert commands[3][commands[3].index("--seed_everything") + 1] == "1"
    assert not Path("runs").exists()


def test_a_start_of_a_stage_imports_no_torch() -> None:
    """Torch takes seconds to import, and neither this process nor `show` and `status` need it."""
    program = "import sys; sys.modules['torch'] = None; import experiments.start, experiments.__main__"
    subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, check=True)


def test_finished_stages_are_skipped_and_failures_do_not_stop_the_others(
    tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    rows = "  - {label: LABEL, stages: [{stage: tokenizer, recipe: vq, preset_file: tokenizer, overrides: {VALUES}}]}\n"
    fails = rows.replace("LABEL", "fails").replace("VALUES", "data.init_args.batch_size: 13")
    again = rows.replace("LABEL", "like the first").replace("VALUES", "trainer.max_steps: 2")
    file = write_experiment(tmp_path, ("rows:\n", f"rows:\n{fails}{fails.replace('fails', 'fails as well')}"))
    file.write_text(file.read_text() + again)

    assert main(["run", str(file), "--seeds", "2"]) == 1
    printed = capfd.readouterr()
    assert printed.out.startswith("6 stages to run\n")
    assert printed.out.count("FAILED (exit code 3)") == 2
    assert "[1/10] fails, seed 0, tokenizer: FAILED" in printed.out
    assert "log.txt\n    ValueError: thirteen" in printed.out
    assert "[3/10] plain, seed 0, tokenizer: done in 0:00:0" in printed.out
    assert "[5/10]" not in printed.out, "a stage of two rows is one stage"
    assert "4 of 10 rows failed" in printed.err and "  fails as well, seed 1: tokenizer, runs/" in printed.err
    assert "make:" not in printed.err
    assert len(starts()) == 6 and set(starts().values()) == {1}

    assert main(["run", str(file), "--seeds", "2"]) == 1
    assert sum(starts().values()) == 8  # the failed run, once a seed
    assert capfd.readouterr().out.startswith("2 stages to run, about 0:00:0")
    assert main(["status", str(file)]) == 0
    assert "6 of 10 rows done; 2 stages to run, about 0:00:0" in capfd.readouterr().out


def test_jobs_run_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_experiment(tmp_path)
    monkeypatch.setenv("MEET", "4")  # the program waits until as many have started
    assert main(["run", str(file), "--seeds", "2", "--jobs", "4"]) == 0
    assert len(starts()) == 4


def caller(file: Path, pause: str) -> subprocess.Popen[bytes]:
    """`python -m experiments run`, with the program of the tests in place of cli.py, as a process of its own."""
    program = "import runpy, sys; from pathlib import Path; from experiments import check, tasks\n"
    program += f"sys.argv[1:] = ['run', {str(file)!r}]\n"
    program += f"tasks.PROGRAM, check.check = Path({str(tasks.PROGRAM)!r}), lambda *_: set()\n"
    program += "runpy.run_module('experiments', run_name='__main__')"
    path = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": path, "PAUSE": pause})


def test_two_callers_run_each_stage_once(tmp_path: Path) -> None:
    file = write_experiment(tmp_path)
    with caller(file, pause="1") as one, caller(file, pause="1") as other:
        assert (one.wait(SECONDS), other.wait(SECONDS)) == (0, 0)
    assert len(starts()) == 2 and set(starts().values()) == {1}


SAVES = """
import pathlib, signal, sys, time

def save(*_):
    time.sleep(0.5)
    pathlib.Path("saved.txt").touch()
    sys.exit(75)

signal.signal(signal.SIGTERM, save)
"""


def test_sigterm_stops_the_runner_and_its_stages(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    (tmp_path / "program.py").write_text(SAVES + PROGRAM)
    file = write_experiment(tmp_path)
    with caller(file, pause="60") as runner:
        try:
            wait_for_start(runner)
            runner.send_signal(signal.SIGTERM)
            assert runner.wait(SECONDS) == 130
        finally:
            runner.kill()
    assert Path("saved.txt").exists(), "the runner waits until its stages have saved"
    (run,) = runs_of(load(str(file)).rows[0], "digits", 0)
    assert float((run.directory / "seconds.txt").read_text()) >= 0.5
    assert "Traceback" not in capfd.readouterr().err
    with run.log.open("a") as log:  # no process holds the log's lock any more
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_stage_of_a_job_ignores_the_signal_that_the_job_ignores(tmp_path: Path) -> None:
    """Those of train.sbatch: the ranks alone act on it."""
    (run,) = runs_of(load(str(write_experiment(tmp_path))).rows[0], "digits", 0)
    start.write(run, "plain")
    deaf = f"trap '' TERM; exec {sys.executable} -m experiments.start {run.directory}"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PAUSE": "1"}
    with subprocess.Popen(["sh", "-c", deaf], env=environment) as stage:
        try:
            wait_for_start(stage)
            stage.send_signal(signal.SIGTERM)
            assert stage.wait(SECONDS) == 0
        finally:
            stage.kill()
    assert run.state == "done"


def test_errors_of_sbatch_are_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (tmp_path / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: invalid partition: gpuu' >&2\nexit 1\n")
    (tmp_path / "sbatch").chmod(0o755)
    assert main(["run", str(write_experiment(tmp_path)), "--sbatch=--partition=gpuu"]) == 1
    assert "invalid partition: gpuu" in capfd.readouterr().err


def test_each_stage_is_a_slurm_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sbatch = tmp_path / "bin/sbatch"
    sbatch.parent.mkdir()
    job = f'exec {sys.executable} -m experiments.start "${{run#RUN=}}"'
    set_by_the_job = 'export LAUNCHER="env MEET=1" CLUSTER="--some here"'
    sbatch.write_text(f'#!/bin/sh\necho "$@" >>sbatch.txt\nfor run; do :; done\n{set_by_the_job}\n{job}\n')
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{sbatch.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(tasks, "PROGRAM", tmp_path / "cli.py")
    (tmp_path / "program.py").rename(tmp_path / "cli.py")
    file = write_experiment(tmp_path)
    assert main(["run", str(file), "--jobs", "9", "--sbatch=--partition=gpu --gpus-per-node=8"]) == 0
    submitted = Path("sbatch.txt").read_text().splitlines()
    assert len(submitted) == 2
    options = ("--wait --parsable --dependency=singleton", "--partition=gpu --gpus-per-node=8")
    assert all(option in line for line in submitted for option in options)
    assert all("scripts/train.sbatch experiment-stage RUN=runs/experiments/digits" in line for line in submitted)
    (log,) = {run.log for run in runs_of(load(str(file)).rows[0], "digits", 0)}
    assert log.read_text().startswith("$ env MEET=1 ") and "--some here" in log.read_text()


def test_a_killed_run_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> None:
    file = write_experiment(tmp_path)
    monkeypatch.setenv("KILL", "1")
    assert main(["run", str(file)]) == 1
    assert "FAILED (exit code -9)" in capfd.readouterr().out
    monkeypatch.delenv("KILL")
    assert main(["status", str(file)]) == 0
    assert "plain, seed 0: tokenizer unfinished" in capfd.readouterr().out
    assert main(["run", str(file)]) == 0
    assert set(starts().values()) == {2}
    (log,) = {run.log for run in runs_of(load(str(file)).rows[0], "digits", 0)}
    assert log.read_text().count("started") == 2


def test_a_stage_running_elsewhere_is_waited_for(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    file = write_experiment(tmp_path)
    (run,) = runs_of(load(str(file)).rows[0], "digits", 0)
    run.directory.mkdir(parents=True)
    other = run.log.open("a")
    fcntl.flock(other, fcntl.LOCK_EX)

    def end_elsewhere() -> None:
        waits = re.compile(rf"-> FLOCK .*:{run.log.stat().st_ino} ")
        try:
            while not waits.search(Path("/proc/locks").read_text()):
                time.sleep(0.01)
            (run.directory / "metrics.json").write_text('{"validate": {"metrics": {"val/psnr": 1.0}}}')
            finish(run.directory, "fit", "", [run.directory / "metrics.json"])
        finally:
            other.close()

    finisher = threading.Thread(target=end_elsewhere)
    finisher.start()
    assert main(["run", str(file)]) == 0
    finisher.join()
    assert "running elsewhere, waiting" in capfd.readouterr().out
    assert str(run.directory) not in starts() and len(starts()) == 1


def test_the_reason_of_a_failure_is_from_the_last_start(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text("$ one\nerror: old\n$ two\nerror: no such key\n  in a.yaml, line 3\n  did you mean b?\n")
    assert start.last_words(log) == "error: no such key"
    log.write_text("$ one\nerror: old\n$ two\nwarning\nKilled\n\n")
    assert start.last_words(log) == "Killed"


def test_the_table_has_the_papers_columns(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = write_experiment(tmp_path)
    assert main(["run", str(file), "--seeds", "3"]) == 0
    for metrics in Path("runs").rglob("vq/*/seed_2/metrics.json"):
        if "perceptual" in (metrics.parent / "overrides.yaml").read_text():
            metrics.unlink()
    capsys.readouterr()
    assert main(["show", str(file), "--markdown"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "|  | PSNR ↑ | paper: rFID | codes used ↑ | paper: gFID | seeds |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        "| plain | 21 ± 1 | 3.5 | 0.75 ± 0 | 7 | 3 |",
        "| without pictures | 20.5 ± 0.71 | — | 0.75 ± 0 | — | 2 |",
    ]
    assert main(["show", str(file), "--seeds", "1"]) == 0
    shown = capsys.readouterr().out
    assert "±" not in shown and "without pictures" in shown and "table_digits.csv" in shown

    main(["show", str(file)])
    with Path("runs/experiments/results/paper/table_digits.csv").open() as content:
        records = list(csv.DictReader(content))
    assert len(records) == 10
    columns = ["experiment", "row", "seed", "metric", "value", "n", "protocol", "run", "commit", "machine"]
    assert list(records[0]) == columns
    (record,) = [r for r in records if (r["row"], r["seed"], r["metric"]) == ("plain", "1", "val/psnr")]
    assert record["value"] == "21.0" and record["experiment"] == "paper/table"
    assert (Path(record["run"]) / "metrics.json").exists()
    assert (record["protocol"], record["commit"], record["machine"]) == ("validation at step 600", "abc", "a PC")

    content = json.loads(Path("runs/experiments/results/paper/table_digits.json").read_text())
    assert [
        {key: str(value if value is not None else "") for key, value in r.items()} for r in content["records"]
    ] == records
    assert content["tables"][0]["rows"][0] == ["plain", "21 ± 1", "3.5", "0.75 ± 0", "7", "3"]
    assert "5 of 6 runs of a row are done" in content["tables"][0]["caption"]


@pytest.mark.parametrize("command", ["run", "show"])
def test_the_results_of_all_seeds_are_written(command: str, tmp_path: Path) -> None:
    file = write_experiment(tmp_path)
    assert main(["run", str(file), "--seeds", "2"]) == 0
    (seed, *_) = Path("runs/experiments").rglob("seed_0")
    shutil.copytree(seed, seed.with_name("seed_0.bak"))  # by hand: no seed
    assert main([command, str(file), "--seeds", "1"]) == 0
    content = json.loads(Path("runs/experiments/results/paper/table_digits.json").read_text())
    assert content["experiment"] == "paper/table" and content["preset"] == "digits"
    assert {record["seed"] for record in content["records"]} == {0, 1}


def test_a_diverged_seed_and_another_commit_are_seen_in_the_table(tmp_path: Path, capsys) -> None:
    file = write_experiment(tmp_path)
    assert main(["run", str(file), "--seeds", "3"]) == 0
    diverged, other, *_ = sorted(Path("runs").rglob("seed_2/metrics.json"))
    for metrics, old, new in ((diverged, r'"val/psnr": [\d.]+', '"val/psnr": null'), (other, '"abc"', '"def"')):
        text = re.sub(old, new, metrics.read_text())
        assert text != metrics.read_text()
        metrics.write_text(text)
    capsys.readouterr()
    assert main(["show", str(file)]) == 0
    assert "(2 of 3)" in capsys.readouterr().out
    content = json.loads(Path("runs/experiments/results/paper/table_digits.json").read_text())
    assert content["tables"][0]["caption"].endswith("; measured at several commits: abc, def")


def test_a_share_is_shown_in_percent_as_in_the_paper(tmp_path: Path, capsys) -> None:
    change = ("label: codes used, direction: up", "label: codes used (%), percent: true, direction: up, paper: rFID")
    file = write_experiment(tmp_path, change)
    assert main(["run", str(file)]) == 0
    capsys.readouterr()
    assert main(["show", str(file), "--markdown"]) == 0
    assert "| plain | 20 | 3.5 | 75 | 3.5 | 7 | 1 |" in capsys.readouterr().out


def test_a_column_that_has_no_better_side_has_no_arrow(tmp_path: Path, capsys) -> None:
    file = write_experiment(tmp_path, ("label: codes used, direction: up", "label: codes used"))
    assert main(["show", str(file), "--markdown"]) == 0
    assert capsys.readouterr().out.startswith("|  | PSNR ↑ | paper: rFID | codes used | paper: gFID | seeds |")


def test_an_unknown_metric_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = write_experiment(tmp_path, ("val/psnr", "val/ssim"))
    assert main(["run", str(file)]) == 0
    assert main(["show", str(file)]) == 0
    assert "no run has measured 'val/ssim'; nearest is val/psnr" in capsys.readouterr().err


def test_a_table_without_runs_is_empty(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["show", str(write_experiment(tmp_path)), "--markdown"]) == 0
    assert "| plain | — | 3.5 | — | 7 | 0 |" in capsys.readouterr().out
