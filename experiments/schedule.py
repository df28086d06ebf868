"""Run the missing stages of an experiment: several at once, each after its inputs, past failures."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

from artifacts.repository import REPOSITORY
from experiments import start
from experiments.tasks import Run, Task

JOB = REPOSITORY / "scripts" / "train.sbatch"
Missing = dict[Path, tuple[Run, str]]  # by directory: a run, and its label


def missing(tasks: list[Task]) -> Missing:
    """The runs that are not done, each once, labelled by its first row, seed and kind."""
    found: Missing = {}
    for number, task in enumerate(tasks, 1):
        for run in task.runs:
            if run.state != "done":
                label = f"[{number}/{len(tasks)}] {task.row.label}, seed {task.seed}, {run.stage.kind}"
                found.setdefault(run.directory, (run, label))
    return found


def estimate(runs: list[Run], jobs: int = 1) -> str:
    """`, about 0:12:34` by finished runs of the same kind; empty before there are any."""
    known = [seconds for run in runs if (seconds := start.seconds_of(run.directory)) is not None]
    return f", about {start.clock(sum(known) / len(known) * len(runs) / min(jobs, len(runs)))}" if known else ""


def run_all(todo: Missing, jobs: int, sbatch: str | None = None) -> None:
    """Run these stages, `jobs` at once, in their order as far as their inputs are done.

    Args:
        todo: The missing stages; their state tells afterwards which of them are done.
        jobs: How many at once.
        sbatch: Options of sbatch, if each stage is to be a SLURM job.
    """
    waiting = list(todo)
    undone = set(todo)
    started: list[subprocess.Popen[str]] = []
    environment = _environment(jobs if sbatch is None else 1)
    with ThreadPoolExecutor(jobs) as pool:
        try:
            running: dict[Future[bool], Path] = {}
            while True:
                ready = [directory for directory in waiting if undone.isdisjoint(todo[directory][0].inputs.values())]
                for directory in ready[: jobs - len(running)]:
                    waiting.remove(directory)
                    process = _start(*todo[directory], environment, sbatch)
                    started.append(process)
                    prefix = f"{todo[directory][1]}: job " if sbatch is not None else ""
                    running[pool.submit(_follow, process, prefix)] = directory
                if not running:
                    return  # the remaining stages have inputs that failed
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    directory = running.pop(future)
                    if future.result():
                        undone.remove(directory)
        except KeyboardInterrupt:
            for process in started:
                if process.poll() is None:  # training saves at SIGTERM (callbacks.Requeue)
                    os.killpg(process.pid, signal.SIGTERM)
            raise


def _start(run: Run, label: str, environment: dict[str, str], sbatch: str | None) -> subprocess.Popen[str]:
    start.write(run, label)
    command = [sys.executable, "-m", "experiments.start", str(run.directory)]
    if sbatch is not None:
        # the job of a second caller has the same name and waits without an allocation
        command = ["sbatch", "--wait", "--parsable", "--dependency=singleton"]
        command += [
            f"--job-name={run.stage.kind}-{run.digest}-{run.seed}",
            f"--output={run.directory}/slurm-%j.log",
            *shlex.split(sbatch),
        ]
        command += [str(JOB), "experiment-stage", f"RUN={run.directory}"]
    # a separate process group, which can be stopped as a whole
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, start_new_session=True)


def _follow(process: subprocess.Popen[str], prefix: str) -> bool:
    """Print each line as it comes; True if the process succeeded."""
    with process:
        assert process.stdout
        for line in process.stdout:
            print(f"{prefix}{line}", end="", flush=True)
    return process.returncode == 0


def _environment(jobs: int) -> dict[str, str]:
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    if jobs > 1:  # they share the processors
        environment.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // jobs)))
    return environment
