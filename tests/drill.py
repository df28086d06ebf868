"""Fault drill: a curriculum on digits that is killed repeatedly ends with the numbers of an uninterrupted one.

    python -m tests.drill --kills 20 --seed 0                  (make drill)

Tokenizer, tokens, both generator stages, samples and their evaluation run twice, at a size of seconds. The second time
SIGKILL hits the program and its children at random moments, and the same command is started again. Weights,
averages, metrics, codes and samples of both must be equal, bit for bit. Judge and teachers have random weights.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from tests.support.commands import REPOSITORY
from tests.support.generator_recipes import tiny
from tests.support.recipes import CONFIGS, digits, write_judge

RUNS = Path("runs/digits")
WRITES = {"evaluate": "samples"}  # the other stages have directories of their own names
STAGES = ("tokenizer", "tokens", "stage1", "stage2", "samples", "evaluate")
PLACES = {stage: RUNS / WRITES.get(stage, stage) / "fq_dual" for stage in STAGES}
TRAINED = ("tokenizer", "stage1", "stage2")
CHECKPOINT = 5  # steps from one to the next
PART = 10  # samples in a file, until all are in one


def commands(steps: int, samples: int) -> dict[str, list[str]]:
    """The command of each stage, for a directory with ``runs`` and the overlays."""
    cli, quiet = str(REPOSITORY / "cli.py"), ["--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"]
    fit = [*quiet, "--trainer.max_steps", str(steps), "--trainer.val_check_interval", str(steps // 2)]
    adversarial = ["--model.init_args.objective.adversarial.start_step", str(steps // 2)]
    store, stage1 = PLACES["tokens"], str(PLACES["stage1"])
    parts = ["--data.init_args.num_images", str(samples), "--data.init_args.part_size", str(PART)]
    parts += ["--data.init_args.batch_size", "5", "--model.init_args.generator_run", str(PLACES["stage2"])]
    shards = ["--trainer.callbacks.init_args.images_per_shard", "128"]
    tokenizer = [*digits("fq_dual", RUNS / "teacher/judge.safetensors"), "--config", "tokenizer.yaml", *fit]
    first, second = ([*tiny(name, store), "--config", "generator.yaml", *fit] for name in ("stage1", "stage2"))
    return {
        "tokenizer": [cli, "fit", *tokenizer, *adversarial],
        "tokens": [cli, "predict", *_files("tokens"), *quiet, *shards],
        "stage1": [cli, "fit", *first],
        "stage2": [cli, "fit", *second, "--model.init_args.init_from", stage1],
        "samples": [cli, "predict", *_files("sample"), *quiet, *parts],
        "evaluate": ["-m", "commands.evaluate", "--preset", "digits", "--samples", f"{PLACES['samples']}/samples.npz"],
    }


def _files(stage: str) -> list[str]:
    paths = (CONFIGS / f"{stage}.yaml", CONFIGS / f"presets/digits/{stage}.yaml")
    return [part for path in paths for part in ("--config", str(path))]


def prepare(directory: Path) -> None:
    """Prepare an empty directory with a judge, teachers, and overlays that save every few steps."""
    shutil.rmtree(directory, ignore_errors=True)
    (directory / RUNS / "teacher").mkdir(parents=True)
    write_judge(directory / RUNS / "teacher/judge.safetensors")
    for module in ("tokenizer", "generator"):
        callbacks: list[dict[str, Any]] = [
            {
                "class_path": "callbacks.LastCheckpoint",
                "init_args": {"every_n_train_steps": CHECKPOINT},
            },
            {"class_path": "callbacks.Requeue"},
            {"class_path": "callbacks.RandomState"},
            {"class_path": "callbacks.MetricsFile"},
            {"class_path": "callbacks.EMA", "init_args": {"modules": [module]}},
        ]
        if module == "tokenizer":  # a generator measures itself
            callbacks.append({"class_path": "callbacks.ReconstructionMetrics"})
        content = {"trainer": {"callbacks": callbacks, "limit_val_batches": 2}}
        content["data"] = {"init_args": {"batch_size": 4}}
        (directory / f"{module}.yaml").write_text(yaml.safe_dump(content))


def run(command: list[str], directory: Path, kill_when: Callable[[], bool] | None = None) -> tuple[bool, float]:
    """Run a program; returns whether it was killed, and its seconds. A failure ends the drill."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    start = time.monotonic()
    with (directory / "output.txt").open("a") as said:
        program, streams = [sys.executable, *command], {"stdout": said, "stderr": said}
        process = subprocess.Popen(program, cwd=directory, env=environment, start_new_session=True, **streams)
        while (code := process.poll()) is None:
            if kill_when and kill_when():
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                return True, time.monotonic() - start
            time.sleep(0.02)
    if code != 0:
        sys.exit(f"drill: {' '.join(command[:2])} ended with {code}, see {directory / 'output.txt'}")
    return False, time.monotonic() - start


def moment(stage: str, directory: Path, units: int, delay: float) -> Callable[[], bool]:
    """A condition that holds ``delay`` seconds after the program has written this many more units to the disk."""
    before, since = reached(stage, directory), time.monotonic()

    def come() -> bool:
        nonlocal since, units
        if units and reached(stage, directory) >= before + units:
            since, units = time.monotonic(), 0
        return not units and time.monotonic() >= since + delay

    return come


def reached(stage: str, directory: Path) -> int:
    """Number of steps, shards or parts that a stage has written; evaluation writes only its result."""
    place = directory / PLACES[stage]
    if stage in TRAINED:
        for name in ("last.ckpt", "previous.ckpt"):  # a checkpoint is put in place in two steps
            with suppress(FileNotFoundError):
                return int(torch.load(place / "checkpoints" / name, mmap=True, weights_only=True)["global_step"])
        return 0
    if stage == "tokens":
        return len([*place.rglob("*.arrow")])
    if stage == "samples":
        with suppress(FileNotFoundError):  # joining the parts counts as one more
            return -(-len(np.load(place / "samples.npz", allow_pickle=False)["arr_1"]) // PART) + 1
        return len([*place.glob("parts/*.npy")])
    return 0


def result(directory: Path) -> dict[str, Any]:
    """The files in which two curricula must agree."""
    from artifacts.samples import SamplesFile
    from artifacts.token_store import stores

    found: dict[str, Any] = {}
    for stage in TRAINED:
        place = directory / PLACES[stage]
        state = torch.load(place / "checkpoints/last.ckpt", weights_only=True)
        ema = next(value for name, value in state["callbacks"].items() if name.startswith("EMA"))
        found[f"{stage}: weights"] = state["state_dict"]
        found[f"{stage}: averages"] = ema["average"]
        found[f"{stage}: figures"] = json.loads((place / "metrics.json").read_text())["validate"]["metrics"]
    found["codes"] = [shard.sha256 for store in stores(directory / PLACES["tokens"], True) for shard in store.shards]
    found["samples"] = SamplesFile(directory / PLACES["samples"] / "samples.npz").digest()
    metrics = json.loads((directory / PLACES["evaluate"] / "metrics.json").read_text())
    found["evaluate: metrics"] = metrics["evaluate"]["metrics"]
    return found


def equal(one: Any, other: Any) -> bool:
    """True if two values are equal bit for bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else bool(one == other)


def drill(directory: Path, kills: int, seed: int, steps: int, samples: int) -> dict[str, Any]:
    """Run both curricula; the result is returned and written to ``drill.json``."""
    draw, begun = random.Random(seed), time.monotonic()
    peace, fire = directory / "undisturbed", directory / "killed"
    stages = commands(steps, samples)
    seconds: dict[str, float] = {}
    begins: dict[str, float] = {}  # when a stage writes for the first time
    log: list[dict[str, Any]] = []

    def say(stage: str, what: str, **more: Any) -> None:
        entry = {"at": round(time.monotonic() - begun, 1), "stage": stage, "what": what, **more}
        log.append(entry)
        details = ", ".join(f"{value:.1f} s" if isinstance(value, float) else value for value in more.values())
        print(f"{entry['at']:7.1f} s  {stage:<10} {what:<28} {details}", flush=True)

    for place in (peace, fire):
        prepare(place)
    for stage, command in stages.items():
        start = time.time()
        _, seconds[stage] = run(command, peace)
        written = (path.stat().st_mtime - start for path in (peace / PLACES[stage]).rglob("*") if path.is_file())
        begins[stage] = min([after for after in written if after > 0] + [seconds[stage]])
        say(stage, "undisturbed", after=seconds[stage])
    planned, left = [*islice(cycle(stages), kills)], 0  # each stage has its share
    for stage, command in stages.items():
        left += planned.count(stage)  # and starts after the end of an earlier stage
        killed, total = True, reached(stage, peace)
        while killed or (left and stage == "evaluate"):  # which can be started repeatedly
            # each start does its share of the rest, and is killed before its first write or between two writes
            units = draw.randint(0, 2 * (total - reached(stage, fire)) // (left + 1)) if left else 0
            write = (seconds[stage] - begins[stage]) / max(1, total) * (CHECKPOINT if stage in TRAINED else 1)
            delay = draw.uniform(0, write) if units else draw.uniform(0.5, 1) * begins[stage]
            killed, after = run(command, fire, moment(stage, fire, units, delay) if left else None)
            left -= killed
            say(stage, "killed" if killed else "ended", after=after, left=f"{reached(stage, fire)} of {total}")
    expected, found = result(peace), result(fire)
    alike = {name: equal(found[name], expected[name]) for name in expected}
    report = {"seed": seed, "kills": kills, "steps": steps, "samples": samples, "equal": alike, "log": log}
    (directory / "drill.json").write_text(json.dumps(report, indent=1) + "\n")
    return report


def main(arguments: list[str] | None = None) -> int:
    """Run the drill; returns 0 if everything is equal."""
    parser = argparse.ArgumentParser(prog="python -m tests.drill", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="SIGKILLs (20)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (0)")
    parser.add_argument("--steps", type=int, default=120, help="updates of each training (120)")
    parser.add_argument("--samples", type=int, default=100, help="images to sample (100)")
    parser.add_argument("--directory", type=Path, default=Path("runs/drill"), help="emptied first (runs/drill)")
    options = parser.parse_args(arguments)
    report = drill(options.directory, options.kills, options.seed, options.steps, options.samples)
    wrong = [name for name, same in report["equal"].items() if not same]
    print(f"{report['kills']} kills; {'all is equal' if not wrong else 'DIFFERENT: ' + ', '.join(wrong)}")
    print(f"all of it: {options.directory / 'drill.json'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
