"""A program that trains a generator on two forked ranks, without and with an interruption."""

import json
import sys
from pathlib import Path

import yaml

import cli
from tests.support.generator_recipes import tiny, write_digit_codes

CALLBACKS = [
    {"class_path": "callbacks.LastCheckpoint", "init_args": {"every_n_train_steps": 100}},
    {"class_path": "callbacks.Requeue"},
    {"class_path": "callbacks.RandomState"},
    {"class_path": "callbacks.EMA", "init_args": {"modules": ["generator"]}},
]


def fit(root: str, **interrupt: object) -> None:
    """Start the run once, and print the exit code if it is interrupted."""
    killer = {"class_path": "tests.support.interrupt.KillAfter", "init_args": interrupt}
    trainer = {"max_steps": 5, "limit_val_batches": 0, "callbacks": CALLBACKS + ([killer] if interrupt else [])}
    Path("overlay.yaml").write_text(yaml.safe_dump({"trainer": trainer}))
    ranks = ["--trainer.devices", "2", "--trainer.strategy", "ddp_fork", "--trainer.accelerator", "cpu"]
    small = ["--data.init_args.batch_size", "4", "--run.root", root]
    try:
        cli.main(["fit", *tiny("stage2", Path("store")), *ranks, *small, "--config", "overlay.yaml"])
    except Exception as error:
        print(json.dumps({"exit_code": getattr(error, "exit_code", None), "error": str(error)}), flush=True)


if __name__ == "__main__":
    sys.argv = ["cli.py"]
    write_digit_codes(Path("store"))
    fit("whole")
    fit("interrupted", step=3, name="SIGTERM", rank=1)
    fit("interrupted")
