"""Runs of the shipped recipes, cut down to seconds."""

import os
import sys
from pathlib import Path
from unittest import mock

from tests.support.commands import exit_code
from tests.support.recipes import digits, write_judge


def trained_tokenizer(directory: Path, recipe: str = "fq_dual", steps: int = 2) -> Path:
    """Run directory of a tokenizer trained for a few steps on the digits; ``runs`` is made inside of ``directory``."""
    here = Path.cwd()
    judge = write_judge(directory / "runs/digits/teacher/judge.safetensors")
    overrides = ["--trainer.max_steps", str(steps), "--trainer.val_check_interval", str(steps)]
    overrides += ["--data.init_args.batch_size", "4", "--trainer.limit_val_batches", "1"]
    overrides += ["--model.init_args.objective.adversarial.start_step", "1", "--trainer.enable_progress_bar", "false"]
    os.chdir(directory)
    try:
        with mock.patch.object(sys, "argv", ["cli.py"]):
            assert exit_code("fit", *digits(recipe, judge), *overrides) == 0
    finally:
        os.chdir(here)
    return directory / "runs/digits/tokenizer" / recipe
