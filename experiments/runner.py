"""What runs an experiment is made of, and whether cli.py would take all of them."""

from __future__ import annotations

import contextlib
import io
import json
import re
import tempfile
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from commands.cli.places import nearest
from experiments.runs import REFERENCE, ROOT, Run, runs_of
from experiments.specification import Experiment, Row, Stage, where
from polytoken.errors import UserError


@dataclass(frozen=True)
class Task:
    """One row with one seed, and its runs in their order."""

    row: Row
    seed: int
    runs: list[Run]


def plan(experiment: Experiment, preset: str, seeds: int, root: Path = ROOT) -> list[Task]:
    """All rows with the first seed, then all with the next: so a table is complete as early as can be."""
    return [Task(row, seed, runs_of(row, preset, seed, root)) for seed in range(seeds) for row in experiment.rows]


def begun(experiment: Experiment, preset: str, root: Path = ROOT) -> int:
    """How many seeds have a directory, at least one."""
    tasks = plan(experiment, preset, 1, root)
    found = [path for task in tasks for run in task.runs for path in run.directory.parent.glob("seed_*")]
    return 1 + max((int(path.name.removeprefix("seed_")) for path in found), default=0)


def check(experiment: Experiment, preset: str, composed: set[str] | None = None) -> None:
    """Compose the configuration of every stage as cli.py would; raises UserError for the first that is wrong.

    Args:
        experiment: At the preset.
        preset: Its name.
        composed: What was composed before and need not be again; the others join it.
    """
    composed = set() if composed is None else composed
    for index, row in enumerate(experiment.rows):
        for number, run in enumerate(runs_of(row, preset, seed=0)):
            stage = run.stage
            # the parser tells numbers of one type apart by nothing: one of them stands for all
            shape = json.dumps([preset, stage.stage, stage.recipe, stage.preset_file, _shape(stage.overrides)])
            if shape in composed or run.kind.options is not None:
                continue
            try:
                compose(run)
            except UserError as error:
                place = (f"rows[{index}]", f"stages[{number}]", "overrides")
                raise UserError(_say(str(error), experiment, row, run, place)) from None
            composed.add(shape)


def _shape(value: Any) -> Any:
    """Overrides with the names of their types in the place of numbers."""
    if isinstance(value, dict):
        return {key: _shape(inner) for key, inner in sorted(value.items())}
    if isinstance(value, list):
        return sorted({json.dumps(_shape(inner)) for inner in value})
    return type(value).__name__ if isinstance(value, int | float) else value


def check_reference(tasks: list[Task]) -> None:
    """Raise UserError if samples are to be compared with a file that is not there: sampling them takes days."""
    if any(run.needs_reference for task in tasks for run in task.runs) and not REFERENCE.exists():
        raise UserError(
            f"{REFERENCE} is missing, which gFID is a distance to: put ADM's there "
            "(openai/guided-diffusion, evaluations, ImageNet 256 × 256)"
        )


def compose(run: Run) -> dict:
    """The configuration of a run, by the parser of cli.py; nothing is built."""
    import cli  # ten seconds that `show` can do without

    printed = io.StringIO()
    with tempfile.TemporaryDirectory() as directory, contextlib.redirect_stdout(printed), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
        overrides = Path(directory) / "overrides.yaml"
        run.write_overrides(overrides)
        with contextlib.suppress(SystemExit):  # printing the configuration ends the program
            cli.CommandLine([*run.arguments(overrides), "--print_config"])
    return yaml.safe_load(printed.getvalue())


def _say(text: str, experiment: Experiment, row: Row, run: Run, place: tuple[str, ...]) -> str:
    """The parser's error with the experiment's own file and line in the place of the temporary one's."""
    lines = text.split("\n")
    rest = [line for line in lines[1:] if not re.match(r"  in .*overrides\.yaml, line", line)]
    stage = run.stage
    key = next((key for key in sorted(stage.overrides, key=len, reverse=True) if _names(lines[0], key)), None)
    if key is None or len(rest) == len(lines) - 1:  # recipe and preset do not go together, whatever the overrides
        return f"row '{row.label}': {text}\n  {where(experiment.file, place[:-1])}"
    # those that count more come first
    sizes = ((*place[:-1], "sizes", run.preset, key), ("sizes", run.preset, stage.stage, key))
    own = where(experiment.file, sizes[0], (*place, key), sizes[1], ("shared", stage.stage, key))
    if "is not an option" in lines[0] and not any("did you mean" in line for line in rest):
        plain = Stage(stage.stage, stage.recipe, stage.preset_file)
        known = _flat(compose(replace(run, stage=plain)))
        rest += [f"  did you mean {match}?" for match in [nearest(key, known)] if match]
    return "\n".join([f"row '{row.label}': {lines[0]}", f"  {own}", *rest])


def _names(line: str, key: str) -> bool:
    """Whether an error is about this override, a section it lies in or a key within its value."""
    named = line.split(" ")[0].rstrip(":")
    return f"{named}.".startswith(f"{key}.") or f"{key}.".startswith(f"{named}.")


def _flat(tree: dict, prefix: str = "") -> list[str]:
    """All keys with dots."""
    keys = []
    for key, value in tree.items():
        keys += [f"{prefix}{key}", *(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [])]
    return keys
