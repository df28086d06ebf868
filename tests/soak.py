"""Soak: many tiny steps of a tokenizer and of a generator use no more memory, files, threads or time at their end.

    python -m tests.soak --steps 20000                                    (make soak)

Both train on digits by cli.py with data workers, averages, validations and checkpoints, from a judge and teachers of
random weights. The first quarter of a run is its start; the medians of the second and of the last quarter are compared.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from polytoken import records
from tests.support.commands import REPOSITORY
from tests.support.generator_recipes import tiny, write_digit_codes
from tests.support.recipes import digits, write_judge
from tests.support.watch import USED

# allowed growth: an amount, and a share of the value
LIMITS = {"memory": (30, 0.0), "workers": (60, 0.0), "files": (10, 0.0), "threads": (2, 0.0), "cpu_ms": (1, 0.2)}
Used = list[dict[str, float]]


def commands(steps: int) -> dict[str, list[str]]:
    """Arguments of `cli.py` for each run, for a directory that `prepare` made."""
    often = ["--trainer.max_steps", str(steps), "--trainer.val_check_interval", str(max(1, steps // 40))]
    quiet = ["--trainer.enable_progress_bar", "false", "--trainer.limit_val_batches", "2"]
    common = [*often, *quiet, "--config", "watch.yaml", "--data.init_args.num_workers", "2"]
    tokenizer = "--model.init_args.tokenizer.init_args"
    small = ["--data.init_args.batch_size", "2", f"{tokenizer}.channel_multipliers", "[1,1,1,1]"]
    late = ["--model.init_args.objective.adversarial.start_step", str(steps // 10)]
    judge = Path("runs/digits/teacher/judge.safetensors")
    return {
        "tokenizer/vq": [*digits("vq", judge), *common, *small, *late],
        "far_base/codes": [*tiny("far_base", Path("codes")), *common, "--run.stage", "far_base/codes"],
    }


def prepare(directory: Path) -> None:
    """An empty directory with a judge, teachers, codes and the callback that watches."""
    shutil.rmtree(directory, ignore_errors=True)
    (directory / "runs/digits/teacher").mkdir(parents=True)
    write_judge(directory / "runs/digits/teacher/judge.safetensors")
    write_digit_codes(directory / "codes", train=200, validation=50)
    callback = {"class_path": "tests.support.watch.Watch"}
    (directory / "watch.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks+": [callback]}}))


def grown(used: Used) -> dict[str, str]:
    """What grew from the second to the last quarter of a run beyond its limit, in words."""
    quarter = max(1, len(used) // 4)
    found = {}
    for name, (amount, share) in LIMITS.items():
        early, late = (median(row[name] for row in rows) for rows in (used[quarter : 2 * quarter], used[-quarter:]))
        if late > early * (1 + share) + amount:
            found[name] = f"{early:.1f} → {late:.1f}"
    return found


def table(used: Used, rows: int = 10) -> str:
    """A few records of a run, in Markdown."""
    head = [*used[0]]
    chosen = [used[round(index * (len(used) - 1) / (rows - 1))] for index in range(rows)]
    lines = [
        [f"{row[name]:,.1f}" if isinstance(row[name], float) else f"{row[name]:,}" for name in head] for row in chosen
    ]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---:"] * len(head), *lines))


def main(arguments: list[str] | None = None) -> int:
    """Run both; returns 0 if nothing grew."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=20_000, help="updates of each run (%(default)s)")
    parser.add_argument(
        "--directory", type=Path, default=Path("runs/soak"), help="emptied first (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    directory = options.directory.absolute()
    prepare(directory)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    report: dict[str, Any] = {}
    for name, given in commands(options.steps).items():
        print(f"{name}: {options.steps:,} steps, see {directory / 'output.txt'}", flush=True)
        with (directory / "output.txt").open("a") as log:
            command = [sys.executable, str(REPOSITORY / "cli.py"), "fit", *given]
            code = subprocess.run(
                command, cwd=directory, env=environment, stdout=log, stderr=log, check=False
            ).returncode
        if code:
            sys.exit(f"soak: {name} ended with {code}, see {directory / 'output.txt'}")
        used = records.read(directory / "runs/digits" / name / USED, list[dict[str, float | int]])
        report[name] = {"used": used, "grown": grown(used)}
        records.write(directory / "soak.json", report)
        print(f"\n{table(used)}\n\n{name}: {report[name]['grown'] or 'nothing grew'}\n", flush=True)
    return int(any(run["grown"] for run in report.values()))


if __name__ == "__main__":
    sys.exit(main())
