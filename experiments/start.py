"""Start of one stage: `python -m experiments.start DIRECTORY`, on this machine or inside a SLURM job (schedule.py)."""

from __future__ import annotations

import fcntl
import os
import shlex
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, TextIO

from artifacts.run_files import StageFile
from experiments.stages import KINDS, progress
from polytoken import records
from polytoken.files import write_text

if TYPE_CHECKING:  # its import would cost each stage seconds
    from experiments.tasks import Run

STAGE, SECONDS, LOG = "stage.json", "seconds.txt", "log.txt"


def write(run: Run, label: str) -> None:
    """Write the files that a start reads: commands, kind, label and overrides."""
    run.write_overrides(run.overrides)
    stage = StageFile(label=label, kind=run.stage.kind, commands=run.commands())
    records.write(run.directory / STAGE, stage)


def start(directory: Path) -> int:
    """Run the commands of a stage and print how it went; their output goes to its log. Returns 0 if it is done.

    The log stays locked while a command lives, even if it outlives this program: two callers run a stage once.
    """
    stage = records.read(directory / STAGE, StageFile)
    kind, label = KINDS[stage["kind"]], stage["label"]
    with (directory / LOG).open("a", encoding="utf-8") as log:
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{label}: running elsewhere, waiting", flush=True)
            fcntl.flock(log, fcntl.LOCK_EX)
        if progress(kind, directory) == "done":
            print(f"{label}: done elsewhere", flush=True)
            return 0
        expected = seconds_of(directory)
        print(f"{label}: started{'' if expected is None else f', about {clock(expected)}'}", flush=True)
        begun = time.monotonic()
        try:
            code = _run_all(stage["commands"], log)
        finally:
            took = time.monotonic() - begun
            write_text(directory / SECONDS, f"{_seconds(directory) + took:.1f}\n")
    if code or progress(kind, directory) != "done":
        reason = f"exit code {code}" if code else "it ended without measuring"
        print(f"{label}: FAILED ({reason}), {directory / LOG}\n    {last_words(directory / LOG)}", flush=True)
        return 1
    print(f"{label}: done in {clock(took)}", flush=True)
    return 0


def _run_all(commands: list[list[str]], log: TextIO) -> int:
    for command in map(launched, commands):
        print(f"$ {shlex.join(command)}", file=log, flush=True)
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            code = process.wait()
        except KeyboardInterrupt:  # the command saves; subprocess.run would kill it meanwhile
            process.wait()
            raise
        if code:
            return code
    return 0


def launched(command: list[str]) -> list[str]:
    """A command of `cli.py` on all ranks of a job, with the job's options (LAUNCHER and CLUSTER of train.sbatch)."""
    if Path(command[1]).name != "cli.py":
        return command
    launcher, cluster = (shlex.split(os.environ.get(name, "")) for name in ("LAUNCHER", "CLUSTER"))
    return [*launcher, *command, *cluster]


def last_words(log: Path) -> str:
    """The line of the last start that gives the reason: our own error if there is one, else the last line."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    _, _, output = f"\n{text}".rpartition("\n$ ")
    lines = [line.strip() for line in output.splitlines()[1:] if line.strip()] or ["it printed nothing"]
    return next((line for line in reversed(lines) if line.startswith("error: ")), lines[-1])


def seconds_of(directory: Path) -> float | None:
    """Mean time of finished stages: of this stage with other seeds, else of its recipe, else of its kind."""
    alike, of_recipe, of_kind = directory.parents[:3]  # <kind>/<recipe>/<digest>/seed_<seed>
    for parent, pattern in ((alike, "*"), (of_recipe, "*/*"), (of_kind, "*/*/*")):
        timed = [place for place in parent.glob(pattern) if (place / SECONDS).exists()]
        if took := [_seconds(place) for place in timed if progress(KINDS[of_kind.name], place) == "done"]:
            return fmean(took)
    return None


def _seconds(directory: Path) -> float:
    file = directory / SECONDS
    return float(file.read_text(encoding="utf-8")) if file.exists() else 0.0


def clock(seconds: float) -> str:
    """As 0:12:34."""
    return str(timedelta(seconds=round(seconds)))


if __name__ == "__main__":
    # the runner stops a process group: the command saves at its own signal, and this program waits for it
    if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:  # train.sbatch ignores it, and so must this program
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sys.exit(start(Path(sys.argv[1])))
    except KeyboardInterrupt:
        sys.exit(130)
