"""Stages as jobs of a real SLURM: submitted, chained, requeued, cancelled; equal to runs without SLURM."""

import contextlib
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

from tests.end_to_end.test_cli import assert_equal
from tests.support.commands import REPOSITORY, exit_code
from tests.support.experiments import write_experiment
from tests.support.generator_recipes import write_digit_codes
from tests.support.local_slurm import ENDED, SCRIPT, LocalSlurm, finished, working_copy

pytestmark = pytest.mark.cluster

STAGES = ("teacher", "tokenizer", "tokens", "stage1", "stage2", "sample", "evaluate", "report")
RUNS = Path("runs/digits")
PREEMPTED, SIGNALLED = ("scontrol", "requeue"), ("scancel", "--signal=USR1")
INTERRUPTED = {"tokenizer": PREEMPTED, "tokens": PREEMPTED, "stage1": SIGNALLED, "sample": SIGNALLED}
PLACES = {"sample": "samples"}  # directories of stages, where the names differ
ONE_CORE = ("LAUNCH=slurm", "GPUS=0", "CPUS=1", "TIME=60")


@pytest.fixture(scope="module")
def slurm() -> Iterator[LocalSlurm]:
    with tempfile.TemporaryDirectory(prefix="slurm") as directory:  # a short path, since it holds sockets
        slurm = LocalSlurm(Path(directory))
        slurm.start()
        yield slurm
        slurm.stop()


def make(slurm: LocalSlurm, here: Path, *arguments: str) -> list[str]:
    """Submit, and return the numbers of the jobs from the output's lines."""
    said = slurm.run("make", "--no-print-directory", *arguments, *ONE_CORE, cwd=here)
    return [line.split()[-1] for line in said.splitlines() if "job " in line]


def nothing(slurm: LocalSlurm) -> int:
    """Submit a job that does nothing, and return its number."""
    return int(slurm.run("sbatch", "--parsable", "--output=/dev/null", "--wrap", "true"))


def make_here(here: Path, *arguments: str) -> None:
    """Run the commands of make without SLURM, in this process, to save imports."""
    plan = subprocess.run(["make", "-n", *arguments], cwd=here, check=True, capture_output=True, text=True).stdout
    commands = [shlex.split(line) for line in plan.splitlines() if " cli.py " in line]
    assert commands, plan
    with contextlib.chdir(here), mock.patch.object(sys, "argv", ["cli.py"]):
        for command in commands:
            assert exit_code(*command[command.index("cli.py") + 1 :]) == 0, command


def state(run: Path) -> dict:
    return torch.load(run / "checkpoints/last.ckpt", weights_only=True)


def with_codes(directory: Path, pause: list[str]) -> Path:
    """A working copy with the codes of a tokenizer, so that a generator can be trained at once."""
    here = working_copy(directory, pause)
    codes = write_digit_codes(here / RUNS / "tokens/fq_dual")
    for directory in (here / RUNS / "tokenizer/fq_dual", codes):
        finished(directory, codes / "validation/manifest.json")
    return here


def test_slurm_runs_a_job(slurm: LocalSlurm, tmp_path: Path) -> None:
    slurm.start()  # which starts nothing twice
    assert slurm.run(str(SCRIPT), "status", str(slurm.directory)).startswith("PARTITION")
    job = slurm.run("sbatch", "--parsable", f"--output={tmp_path}/log", "--wrap", "srun hostname").strip()
    slurm.operate([job], {})
    assert slurm.about(job)["JobState"] == "COMPLETED"
    assert (tmp_path / "log").read_text() == slurm.run("hostname")


def test_a_failed_stage_removes_later_ones_from_the_queue(slurm: LocalSlurm, tmp_path: Path) -> None:
    here = working_copy(tmp_path / "here")
    (here / "configs/presets/photos/judge.yaml").write_text("")
    jobs = make(slurm, here, "curriculum", "PRESET=photos")
    slurm.operate(jobs, {})
    about = [slurm.about(job) for job in jobs]
    assert [job["JobState"] for job in about] == ["FAILED"] + ["CANCELLED"] * (len(jobs) - 1)
    assert about[-1]["Reason"] == "DependencyNeverSatisfied"
    (log,) = (tmp_path / "here/runs/photos/slurm").glob(f"*-{jobs[0]}.log")
    assert "\nerror: configs/presets/photos/judge.yaml has no keys at its top: write" in log.read_text()


def test_a_stage_runs_as_a_job(slurm: LocalSlurm, tmp_path: Path) -> None:
    """A finished stage ends at once, and submits nothing."""
    here = working_copy(tmp_path / "here")
    (job,) = make(slurm, here, "teacher")
    slurm.operate([job], {})
    assert slurm.about(job)["JobState"] == "COMPLETED"
    log = here / RUNS / f"slurm/digits-teacher-{job}.log"
    assert log.read_text().count(" is finished, and its settings are not recorded: nothing to do\n") == 5
    assert nothing(slurm) == int(job) + 1


def test_a_signal_before_the_handlers_are_installed(slurm: LocalSlurm, tmp_path: Path) -> None:
    """The signal arrives while a rank imports, or 300 s before the end of a job of four minutes."""
    (tmp_path / "Makefile").write_text(
        "said:\n\t$(LAUNCHER) python3 -c 'import os, signal; os.kill(os.getpid(), signal.SIGUSR1); "
        """print("alive until", os.environ["SLURM_JOB_END_TIME"])'\n"""
    )
    script = str(REPOSITORY / "scripts/train.sbatch")
    options = (f"--output={tmp_path}/log", "--time=60")
    job = slurm.run("sbatch", "--parsable", *options, script, "said", cwd=tmp_path).strip()
    slurm.operate([job], {})
    said = (tmp_path / "log").read_text()
    assert slurm.about(job)["JobState"] == "COMPLETED", said
    alive, end = said.splitlines()[-1].rsplit(" ", 1)
    assert alive == "alive until" and abs(int(end) - time.time() - 3600) < 300


@pytest.fixture(scope="module")
def chain(slurm: LocalSlurm, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, dict[str, str]]]:
    """A curriculum as jobs, each kind of stage interrupted; one without SLURM; and SLURM's records of the jobs."""
    root = tmp_path_factory.mktemp("chain")
    here = working_copy(root / "jobs", pause=[f"{PLACES.get(stage, stage)}/fq_dual" for stage in INTERRUPTED])
    jobs = dict(zip(STAGES, make(slurm, here, "curriculum"), strict=True))
    alone = working_copy(root / "alone")
    make_here(alone, "sample")  # while the first jobs run
    paused = {stage: here / RUNS / PLACES.get(stage, stage) / "fq_dual/paused" for stage in INTERRUPTED}
    slurm.operate(
        [*jobs.values()],
        {paused[stage]: partial(slurm.run, *words, jobs[stage]) for stage, words in INTERRUPTED.items()},
    )
    return here, alone, {stage: slurm.about(job) for stage, job in jobs.items()}


def test_a_chain_resumes_after_requeueing(chain: tuple[Path, Path, dict[str, dict[str, str]]]) -> None:
    here, _, jobs = chain
    assert {stage: about["JobState"] for stage, about in jobs.items()} == dict.fromkeys(STAGES, "COMPLETED")
    assert {stage: about["Restarts"] for stage, about in jobs.items()} == {
        stage: "1" if stage in INTERRUPTED else "0" for stage in STAGES
    }
    for before, after in pairwise(STAGES):
        assert jobs[before]["EndTime"] <= jobs[after]["StartTime"], f"{after} ran before {before} had ended"
    logs = {stage: (here / RUNS / f"slurm/digits-{stage}-{jobs[stage]['JobId']}.log").read_text() for stage in STAGES}
    requeued = {stage: f"job {jobs[stage]['JobId']}" for stage in INTERRUPTED}
    assert f"holds step 3; SLURM ends {requeued['tokenizer']} (COMPLETING), so it is not" in logs["tokenizer"]
    assert f"SLURM ends {requeued['tokens']} (COMPLETING), so it is not" in logs["tokens"]
    assert f"holds step 3; {requeued['stage1']} is requeued (exit code 75)" in logs["stage1"]
    assert f"{requeued['sample']} is requeued (exit code 75)" in logs["sample"]
    assert (here / RUNS / "report.html").stat().st_size > 1000


def test_a_chain_equals_stages_run_by_hand(chain: tuple[Path, Path, dict[str, dict[str, str]]]) -> None:
    here, alone, _ = chain
    for stage in ("tokenizer", "stage1", "stage2"):
        run = RUNS / stage / "fq_dual"
        found, expected = state(here / run), state(alone / run)
        assert expected["global_step"] == 5
        assert_equal(found, expected)
        assert (here / run / "config_resume_1.yaml").exists() == (stage != "stage2"), "it resumed at step 3"
    samples = RUNS / "samples/fq_dual/samples.npz"
    with np.load(here / samples, allow_pickle=False) as found, np.load(alone / samples, allow_pickle=False) as expected:
        assert np.array_equal(found["arr_0"], expected["arr_0"]) and found["arr_0"].shape == (60, 32, 32, 3)


def test_tasks_of_an_array_are_independent(slurm: LocalSlurm, tmp_path: Path) -> None:
    """One task runs through, one is signalled and requeued, one is cancelled and stays so."""
    here = with_codes(tmp_path / "jobs", pause=["seeds/1", "seeds/2"])
    asked = "ARGS=--seed_everything {0} --run.stage seeds/{0}"
    log = f"--output={here}/%a.log"
    size = ("--nodes=1", "--ntasks-per-node=1", "--cpus-per-task=1", "--time=60")
    job = slurm.run(
        *("sbatch", "--parsable", "--array=0-2", log, *size, "scripts/train.sbatch", "stage1"),
        asked.format("$$SLURM_ARRAY_TASK_ID"),
        cwd=here,
    ).strip()
    tasks = [f"{job}_{task}" for task in range(3)]
    alone = with_codes(tmp_path / "alone", pause=[])
    for seed in (0, 1):
        make_here(alone, "stage1", asked.format(seed))
    runs = [RUNS / f"seeds/{task}" for task in range(3)]
    slurm.operate(
        tasks,
        {
            here / runs[1] / "paused": lambda: slurm.run("scancel", "--signal=USR1", tasks[1]),
            here / runs[2] / "paused": lambda: slurm.run("scancel", tasks[2]),
        },
    )
    about = [slurm.about(task) for task in tasks]
    assert [task["JobState"] for task in about] == ["COMPLETED", "COMPLETED", "CANCELLED"]
    assert [task["Restarts"] for task in about] == ["0", "1", "0"]
    said = [(here / f"{task}.log").read_text() for task in range(3)]
    assert "exit code 75" not in said[0]
    assert f"holds step 3; job {tasks[1]} is requeued (exit code 75)" in said[1]
    assert f"SLURM ends job {tasks[2]} (C" in said[2] and "so it is not requeued from here" in said[2]
    for run in runs[:2]:
        assert_equal(state(here / run), state(alone / run))
    weights = [state(here / run)["state_dict"]["generator.class_embedding.weight"] for run in runs[:2]]
    assert not torch.equal(*weights), "of two seeds"
    assert state(here / runs[2])["global_step"] == 3


def test_an_experiment_submits_its_stages(slurm: LocalSlurm, tmp_path: Path) -> None:
    """Each stage is a job, two at once; the runner waits for them, and a second call has nothing to do."""
    here = working_copy(tmp_path / "jobs")
    size = "--sbatch=--nodes=1 --ntasks-per-node=1 --cpus-per-task=1 --time=60"
    file = write_experiment(here, ("data.init_args.batch_size: 4", "trainer.accelerator: cpu"))
    command = (sys.executable, "-m", "experiments", "run", str(file), "--jobs", "2", size)
    said = slurm.run(*command, cwd=here)
    assert re.search(r"plain, seed 0, tokenizer: job \d+\n", said) and "all 2 rows are done" in said, said
    runs = [*(here / "runs/experiments/digits/tokenizer/vq").glob("*/seed_0")]
    assert len(runs) == 2
    for run in runs:
        (log,) = run.glob("slurm-*.log")
        assert "tokenizer: done in" in log.read_text() and "$ srun " in (run / "log.txt").read_text()
        assert state(run)["global_step"] == 2
        assert "SLURMEnvironment" in (run / "config.yaml").read_text()
    before = nothing(slurm)
    assert slurm.run(*command, cwd=here).startswith("0 stages to run\n")
    assert nothing(slurm) == before + 1, "it submitted something"


def test_a_signal_reaches_two_ranks(slurm: LocalSlurm, tmp_path: Path) -> None:
    """srun starts both ranks, and the signal reaches both."""
    here = with_codes(tmp_path / "jobs", pause=["interrupted"])
    two = ("stage1", "STRATEGY=ddp", "SBATCH_ARGS=--ntasks-per-node=2")
    jobs = [make(slurm, here, *two, f"ARGS=--run.stage {stage}")[0] for stage in ("whole", "interrupted")]
    stop = {here / RUNS / "interrupted/paused": lambda: slurm.run("scancel", "--signal=USR1", jobs[1])}
    slurm.operate(jobs, stop)
    about = [slurm.about(job) for job in jobs]
    assert [job["JobState"] for job in about] == ["COMPLETED"] * 2 and [job["Restarts"] for job in about] == ["0", "1"]
    whole, resumed = (state(here / RUNS / stage) for stage in ("whole", "interrupted"))
    assert whole["global_step"] == resumed["global_step"] == 5 and len(whole["random_state"]) == 2
    for name, value in whole["state_dict"].items():
        torch.testing.assert_close(resumed["state_dict"][name], value, rtol=1e-6, atol=1e-7, msg=name)


def test_an_interactive_allocation_is_not_requeued(slurm: LocalSlurm, tmp_path: Path) -> None:
    """The program saves and names the next step; SLURM gets no order."""
    here = with_codes(tmp_path / "here", pause=["interactive"])
    size = ("--nodes=1", "--ntasks=1", "--cpus-per-task=1", "--time=20", "--job-name=by_hand")
    command = ("salloc", *size, "make", "stage1", "LAUNCHER=srun", "ARGS=--run.stage interactive")
    with ThreadPoolExecutor(1) as other:
        session = other.submit(slurm.attempt, *command, cwd=here)
        end = time.monotonic() + 300
        while not (here / RUNS / "interactive/paused").exists():
            assert not session.done() and time.monotonic() < end, session.result(1)
            time.sleep(0.5)
        job = slurm.run("squeue", "--noheader", "--format=%i", "--name=by_hand").strip()
        slurm.run("scancel", "--signal=USR1", job)
        said = session.result(120)
    assert f"holds step 3; job {job} is interactive (salloc), so it is not requeued" in said
    assert slurm.about(job)["Restarts"] == "0" and slurm.about(job)["JobState"] in ENDED
    assert not slurm.run("squeue", "--noheader", "--name=by_hand")
