"""One stage of a row, `python -m experiments.start DIRECTORY`: called by make, or in a SLURM job (schedule.py)."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from artifacts.run_files import StageFile
from experiments import files
from experiments.stages import KINDS, progress
from polytoken import records
from polytoken.files import write_text

if TYPE_CHECKING:  # what it imports would cost each stage ten seconds
    from experiments.runs import Run

STAGE, SECONDS, LOG = "stage.json", "seconds.txt", "log.txt"


def write(run: Run, label: str) -> None:
    """Leave in its directory what a start needs to know: the commands, the kind of stage, how it is called."""
    run.write_overrides(run.overrides)
    about = {"label": label, "kind": run.stage.stage, "recipe": run.stage.recipe, "commands": run.commands()}
    files.write(run.directory / STAGE, json.dumps(about, indent=1) + "\n")


def start(directory: Path) -> int:
    """Run the commands of a stage to their end and say how it went; their output goes to its log. 0 if it is done.

    The log is locked as long as a command lives, even if it outlives this program: so two callers make a stage once.
    """
    about = records.read(directory / STAGE, StageFile)
    kind, label = KINDS[about["kind"]], about["label"]
    with (directory / LOG).open("a", encoding="utf-8") as log:
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{label}: somebody else runs it, waiting", flush=True)
            fcntl.flock(log, fcntl.LOCK_EX)
        if progress(kind, directory) == "done":
            print(f"{label}: done by somebody else", flush=True)
            return 0
        print(f"{label}: started{_about(seconds_of(directory, about))}", flush=True)
        begun = time.monotonic()
        try:
            code = _run_all([launched(command) for command in about["commands"]], log)
        finally:
            took = time.monotonic() - begun
            write_text(directory / SECONDS, f"{_seconds(directory) + took:.1f}\n")
    if code or progress(kind, directory) != "done":
        reason = f"exit code {code}" if code else "it ended without measuring"
        print(f"{label}: FAILED ({reason}), {directory / LOG}\n    {last_words(directory / LOG)}", flush=True)
        return 1
    print(f"{label}: done in {clock(took)}", flush=True)
    return 0


def _run_all(commands: list[list[str]], log: Any) -> int:
    for command in commands:
        print(f"$ {shlex.join(command)}", file=log, flush=True)
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
        if code:
            return code
    return 0


def launched(command: list[str]) -> list[str]:
    """A command of cli.py as a job on a cluster runs it: on all ranks (LAUNCHER), with what it lays over (CLUSTER)."""
    if Path(command[1]).name != "cli.py":
        return command
    launcher, cluster = (shlex.split(os.environ.get(name, "")) for name in ("LAUNCHER", "CLUSTER"))
    return [*launcher, *command, *cluster]


def last_words(log: Path) -> str:
    """The line that says why: our own error if there is one, else the last of a traceback."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    begin = max((number for number, line in enumerate(lines) if line.startswith("$ ")), default=-1)
    lines = lines[begin + 1 :] or ["it printed nothing"]
    return next((line for line in reversed(lines) if line.startswith("error: ")), lines[-1])


def seconds_of(directory: Path, about: Mapping[str, Any]) -> float | None:
    """How long finished ones took on the mean: this stage with other seeds, else those of its recipe, else its kind."""
    places = directory.parents[3].glob(f"{about['kind']}/*/*/seed_*")  # <kind>/<recipe>/<digest>/seed_<seed>
    kind = KINDS[about["kind"]]
    took = {place: _seconds(place) for place in places if progress(kind, place) == "done"}
    took = {place: seconds for place, seconds in took.items() if seconds}
    same = [seconds for place, seconds in took.items() if place.parent == directory.parent]
    alike = [seconds for place, seconds in took.items() if place.parents[1].name == about["recipe"]]
    every = same or alike or [*took.values()]
    return fmean(every) if every else None


def _seconds(directory: Path) -> float:
    file = directory / SECONDS
    return float(file.read_text(encoding="utf-8")) if file.exists() else 0.0


def clock(seconds: float) -> str:
    """As 0:12:34."""
    return str(timedelta(seconds=round(seconds)))


def _about(seconds: float | None) -> str:
    return "" if seconds is None else f", about {clock(seconds)}"


if __name__ == "__main__":
    sys.exit(start(Path(sys.argv[1])))
