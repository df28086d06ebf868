"""A real SLURM of one node on this machine, and working copies of this repository whose recipes take seconds."""

import os
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from artifacts.completion import DONE, finish
from tests.support.commands import REPOSITORY
from tests.support.recipes import write_judge
from tests.support.working_copy import change, link_repository

SCRIPT = REPOSITORY / "scripts/local_slurm.sh"
CANNOT_BE_HAD = 3  # the script's exit code without root or SLURM
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
SECONDS = 840  # for all jobs together, on a busy machine

_CPU: dict[str, Any] = {"accelerator": "cpu", "limit_val_batches": 1}
_TOKENIZER: dict[str, Any] = {
    "data": {"init_args": {"batch_size": 4}},
    "model": {"init_args": {"objective": {"adversarial": {"start_step": 2}}}},
    "trainer": {**_CPU, "max_steps": 5, "val_check_interval": 5},
}
_TRUNK = {"dim": 16, "depth": 2, "num_heads": 2, "ffn_multiple": 16}
_GENERATOR: dict[str, Any] = {
    "data": {"init_args": {"batch_size": 8}},
    "model": {"init_args": {"generator": {"init_args": {"trunk": _TRUNK}}}},
    "trainer": {**_CPU, "max_steps": 5, "val_check_interval": 5},
}
_SAMPLE: dict[str, Any] = {"data": {"init_args": {"num_images": 60, "batch_size": 30, "part_size": 30}}}
TINY = {"tokenizer": _TOKENIZER, "generator": _GENERATOR, "tokens": {}, "sample": _SAMPLE}


def working_copy(directory: Path, pause: list[str] | None = None) -> Path:
    """A directory to run make in: links to the code, tiny presets of the digits, a judge and teachers, no runs.

    The runs of the stages ``pause`` stop after three steps, or a batch of a prediction, until they receive a signal.
    """
    link_repository(directory)
    for name, changes in TINY.items():
        path = directory / f"configs/presets/digits/{name}.yaml"
        change(path, changes)
        if pause:
            preset = yaml.safe_load(path.read_text())
            callback = {"class_path": "tests.support.interrupt.PauseAfter", "init_args": {"step": 3, "stages": pause}}
            preset.setdefault("trainer", {}).setdefault("callbacks+", []).append(callback)
            path.write_text(yaml.safe_dump(preset))
    judge = write_judge(directory / "runs/digits/teacher/judge.safetensors")
    for name in ("judge", "perceptual", "mid", "high", "dual"):
        finished(judge.with_name(name), judge.with_name(f"{name}.safetensors"))
    return directory


def finished(directory: Path, file: Path) -> None:
    """Mark a stage as one that was made long ago: make describes what was made in the second of its start."""
    finish(directory, "fit", "", [file])
    os.utime(directory / DONE, (0, 0))


class LocalSlurm:
    """SLURM's own programs, on a cluster that `scripts/local_slurm.sh` starts."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(self) -> None:
        """Start it, or skip the test with the script's own reason."""
        done = subprocess.run([SCRIPT, "start", self.directory], capture_output=True, text=True, timeout=300)
        if done.returncode == CANNOT_BE_HAD:
            pytest.skip(done.stderr.strip())
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"export SLURM_CONF={self.directory}/slurm.conf\n"
        self._environment["SLURM_CONF"] = f"{self.directory}/slurm.conf"

    def stop(self) -> None:
        subprocess.run([SCRIPT, "stop", self.directory], check=True, timeout=300)

    def run(self, *command: str, cwd: Path | None = None) -> str:
        """Output of a command: sbatch, scontrol, `make … LAUNCH=slurm`."""
        done = subprocess.run(command, cwd=cwd, env=self._environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def attempt(self, *command: str, cwd: Path) -> str:
        """Everything that a command prints, however it ends."""
        done = subprocess.run(
            command,
            cwd=cwd,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
        )
        return done.stdout

    def about(self, job: str) -> dict[str, str]:
        """SLURM's record of a job: JobState, Restarts, StartTime …"""
        return dict(re.findall(r"(\w+)=(\S*)", self.run("scontrol", "--oneliner", "show", "job", job)))

    def operate(self, jobs: list[str], when: dict[Path, Callable[[], Any]]) -> None:
        """Wait until all jobs have ended; run the action of each file when it appears."""
        end, waiting = time.monotonic() + SECONDS, dict(when)
        while True:
            for path in [path for path in waiting if path.exists()]:
                waiting.pop(path)()
            running = {job: about for job in jobs if (about := self.about(job))["JobState"] not in ENDED}
            if not running:
                assert not waiting, f"never came to {list(waiting)}"
                return
            assert time.monotonic() < end, f"still there after {SECONDS} s: {running}"
            for job, about in running.items():
                if about["Reason"] == "BeginTime":  # SLURM lets a requeued job wait for two minutes
                    self.run("scontrol", "update", f"jobid={job}", "starttime=now")
            time.sleep(2)
