"""What an experiment lacks, made by make, which knows what needs what, runs several at once, survives failures."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from artifacts.repository import REPOSITORY
from experiments import start
from experiments.runner import Task
from experiments.runs import Run

FAILED = re.compile(r"make: (\*\*\* \[|Target .* not remade)")
JOB = REPOSITORY / "scripts" / "train.sbatch"


def missing(tasks: list[Task]) -> dict[Path, tuple[Run, str]]:
    """The runs that are not done, each once, with what each is called: its first row's label, seed and kind."""
    found: dict[Path, tuple[Run, str]] = {}
    for number, task in enumerate(tasks, 1):
        for run in task.runs:
            if run.state() != "done":
                label = f"[{number}/{len(tasks)}] {task.row.label}, seed {task.seed}, {run.stage.stage}"
                found.setdefault(run.directory, (run, label))
    return found


def estimate(runs: list[Run]) -> float | None:
    """Seconds that these take one after another, by finished ones of the same kind; None before there are any."""
    measured = [start.seconds_of(run.directory, {"kind": run.stage.stage, "recipe": run.stage.recipe}) for run in runs]
    known = [seconds for seconds in measured if seconds is not None]
    return sum(known) / len(known) * len(runs) if known else None


def makefile(todo: dict[Path, tuple[Run, str]], sbatch: str | None = None) -> str:
    """The graph of these runs. make decides by the graph alone which to run: a target is a name, and no file.

    Args:
        todo: Those that are :func:`missing`, in the order in which they had better be run.
        sbatch: Options of sbatch, if each is to be a SLURM job.
    """
    names = {directory: f"run{number}" for number, directory in enumerate(todo, 1)}
    lines = ["SHELL := bash", ".SHELLFLAGS := -o pipefail -c"]
    lines += [f"all: {' '.join(names.values())}", f".PHONY: all {' '.join(names.values())}"]
    for run, label in todo.values():
        before = [names[directory] for directory in run.upon.values() if directory in names]
        command = shlex.join([sys.executable, "-m", "experiments.start", str(run.directory)])
        if sbatch is not None:
            job = f"{run.stage.stage}-{run.digest}-{run.seed}"
            command = " ".join(
                [
                    # one job at a time of a name: a second caller's waits without an allocation
                    *("sbatch --wait --parsable --dependency=singleton", shlex.quote(f"--job-name={job}")),
                    *(shlex.quote(f"--output={run.directory}/slurm-%j.log"), sbatch, shlex.quote(str(JOB))),
                    shlex.join(["experiment-stage", f"RUN={run.directory}"]),
                    f"| while read -r job; do echo {shlex.quote(label)}: job $job; done",
                ]
            )
        lines += [f"{names[run.directory]}: {' '.join(before)}", "\t@" + command.replace("$", "$$")]
    return "\n".join(lines) + "\n"


def make(todo: dict[Path, tuple[Run, str]], jobs: int, sbatch: str | None = None) -> None:
    """Have them made, ``jobs`` at once; whether each is done is seen by its state afterwards."""
    if not todo:
        return
    # this program may have been started by make: that one's options are not meant for these
    environment = {
        name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")
    }
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    if jobs > 1 and sbatch is None:  # they share the processors
        environment.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // jobs)))
    command = ["make", "--silent", "--keep-going", f"--jobs={jobs}", "--file=-"]
    # a group of its own, which is stopped as a whole, and gently: training saves at SIGTERM (callbacks.Requeue)
    with (
        _stopped_by_sigterm(),
        subprocess.Popen(
            command,
            env=environment,
            text=True,
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        ) as process,
    ):
        assert process.stdin and process.stderr
        try:
            process.stdin.write(makefile(todo, sbatch))
            process.stdin.close()
            for line in process.stderr:
                if not FAILED.match(line):  # a stage that failed says so itself
                    print(line, end="", file=sys.stderr, flush=True)
        except KeyboardInterrupt:
            os.killpg(process.pid, signal.SIGTERM)
            raise


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """SIGTERM counts as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
