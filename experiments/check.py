"""Validation of the configurations of an experiment by the parser of `cli.py`."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import msgspec

from artifacts import yaml_files
from artifacts.repository import ADM_REFERENCE
from commands.cli import composed
from commands.cli.places import nearest
from experiments.specification import Experiment, Row
from experiments.tasks import Run, Task, nested, runs_of
from polytoken.building import CLASS_PATH
from polytoken.errors import MissingFileError, UserError


def check(experiment: Experiment, known: set[str] | None = None) -> set[Path]:
    """Compose the configuration of every stage as `cli.py` would; raise UserError for the first wrong one.

    The options of a program are parsed as the program would.

    Args:
        experiment: At its preset.
        known: Configurations that were composed before and are skipped; the others are added.

    Returns:
        Files of weights that the composed configurations name, whether they exist or not.
    """
    known = set() if known is None else known
    named: set[Path] = set()
    for index, row in enumerate(experiment.rows):
        for number, run in enumerate(runs_of(row, experiment.preset, seed=0)):
            stage = run.stage
            path = (f"rows[{index}]", f"stages[{number}]")
            if stage.is_program:
                _check_options(experiment, run, path)
                continue
            # configurations that differ only in numbers parse alike: one of each shape is checked
            files = [experiment.preset, stage.kind, stage.recipe, stage.preset_file]
            shape = json.dumps([*files, _shape(stage.overrides)])
            if shape in known:
                continue
            try:
                config = compose(run)
            except UserError as error:
                raise UserError(_translate(str(error), experiment, row, run, path)) from None
            _check_replaced(experiment, run, path, config)
            named |= set(_weights(config))
            known.add(shape)
    return named


def check_files(tasks: list[Task], named: set[Path]) -> None:
    """Raise MissingFileError if a stage reads a file that is missing: its rows would fail there, maybe after days.

    Args:
        tasks: What is to be run.
        named: Files of weights that the configurations name, as :func:`check` returns them.
    """
    preset = tasks[0].runs[0].preset
    for path in sorted(file for file in named if not file.exists()):
        raise MissingFileError(f"{path} is missing: `make teacher PRESET={preset}` trains the networks of a preset")
    runs = [run for task in tasks for run in task.runs]
    for path in {run.reference for run in runs if run.reference and not run.reference.exists()}:
        target = "weights" if path == ADM_REFERENCE else f"reference PRESET={preset} SPLIT=train"
        raise MissingFileError(f"{path} is missing, the reference of gFID: `make {target}` gets it")
    for path in sorted({run.classes for run in runs if run.classes and not run.classes.exists()}):
        raise MissingFileError(
            f"{path} is missing, the class vectors of zero-shot classification: make {path} PRESET={preset}"
        )


def compose(run: Run) -> dict[str, Any]:
    """The whole configuration of a run, by the parser of `cli.py`; nothing is instantiated."""
    with _arguments(run) as arguments:
        return composed.compose(arguments)


def _check_options(experiment: Experiment, run: Run, path: tuple[str, str]) -> None:
    """Raise UserError for options that a program would refuse, which it would do only after the whole training."""
    from experiments import programs  # imports torch, which a start of a stage must not

    (command,) = run.commands()
    said = StringIO()
    try:
        with redirect_stderr(said):
            programs.measurement(programs.parser().parse_args(command[3:]))
    except SystemExit:  # of argparse
        reason = said.getvalue().strip().rpartition("error: ")[2]
    except UserError as error:
        reason = str(error)
    else:
        return
    words = {word.strip("_") for word in re.findall(r"\w+", reason.replace("-", "_"))}
    key = next((one for one in run.stage.overrides if one in words), None)
    places = experiment.source.overrides(path, run.stage.kind, run.preset, key) if key else [path]
    experiment.source.fail(f"'{run.stage.kind}' refuses its options: {reason}", *places)


def _check_replaced(experiment: Experiment, run: Run, path: tuple[str, str], config: dict[str, Any]) -> None:
    """Raise UserError if an override names another class and would keep settings of the one that it replaces.

    The parser hands on what both classes take: a head had the depth of the recipe's head in place of its own.

    Args:
        experiment: Its file, for the message.
        run: With the overrides.
        path: Of its stage in the file.
        config: The whole configuration, in which the parser has found each class, however an override spells it.
    """
    files = [yaml_files.read(file) for file in run.stage.configs(run.preset)]
    stated = {_short(key) for key in _flat(nested(run.stage.overrides))}
    for place, new in _flat(config).items():
        if not isinstance(new, dict) or CLASS_PATH not in new:
            continue
        replaced = [section for file in files if isinstance(section := _at(file, place), dict)]
        if new[CLASS_PATH] == next((one[CLASS_PATH] for one in reversed(replaced) if CLASS_PATH in one), None):
            continue
        before = {name: value for section in replaced for name, value in (section.get("init_args") or {}).items()}
        taken = before.keys() & (new.get("init_args") or {}).keys()
        if kept := sorted(name for name in taken if f"{_short(place)}.{name}" not in stated):
            override = next(one for one in reversed(run.stage.overrides) if _holds(one, place))
            values = ", ".join(f"{one}: {before[one]}" for one in kept)
            experiment.source.fail(
                f"{place} becomes {new[CLASS_PATH].rpartition('.')[2]} and would keep {values} of the class that it "
                "replaces",
                *experiment.source.overrides(path, run.stage.kind, run.preset, override),
                remedy=f"state {' and '.join(kept)} in its init_args",
            )


def _weights(value: Any) -> Iterator[Path]:
    """Every file that a setting `weights` of a configuration names."""
    if isinstance(value, list):
        for one in value:
            yield from _weights(one)
    elif isinstance(value, dict):
        for key, one in value.items():
            if key == "weights" and isinstance(one, str) and one.endswith(".safetensors"):
                yield Path(one)
            yield from _weights(one)


def _short(key: str) -> str:
    """A dotted key without `init_args`, which the parser lets one leave out."""
    return key.replace(".init_args", "")


def _holds(override: str, place: str) -> bool:
    """Does an override give the class at a place?"""
    return f"{_short(place)}.".startswith(f"{_short(override).removesuffix(f'.{CLASS_PATH}')}.")


def _at(config: Any, key: str) -> Any:
    """The value at a dotted key; None if there is none."""
    for part in key.split("."):
        config = config.get(part) if isinstance(config, dict) else None
    return config


@contextmanager
def _arguments(run: Run) -> Iterator[list[str]]:
    """The arguments of a run, with its overrides in a temporary file."""
    with tempfile.TemporaryDirectory() as directory:
        overrides = Path(directory) / "overrides.yaml"
        run.write_overrides(overrides)
        yield run.arguments(overrides)


def _shape(value: Any) -> Any:
    """Overrides with each number replaced by its type's name."""
    if isinstance(value, dict):
        return {key: _shape(inner) for key, inner in sorted(value.items())}
    if isinstance(value, list):
        return sorted({json.dumps(_shape(inner)) for inner in value})
    return type(value).__name__ if isinstance(value, int | float) else value


def _translate(text: str, experiment: Experiment, row: Row, run: Run, path: tuple[str, ...]) -> str:
    """The parser's error with the experiment's file and line in place of those of the temporary overrides."""
    first, *lines = text.split("\n")
    rest = [line for line in lines if not re.match(r"  in .*overrides\.yaml, line", line)]
    stage = run.stage
    key = next((key for key in sorted(stage.overrides, key=len, reverse=True) if _names(first, key)), None)
    if key is None or len(rest) == len(lines):  # recipe and preset do not fit, for any overrides
        return f"row '{row.label}': {text}\n  {experiment.source.where(path)}"
    where = experiment.source.where(*experiment.source.overrides(path, stage.kind, run.preset, key))
    if "is not an option" in first and not any("did you mean" in line for line in rest):
        plain = replace(run, stage=msgspec.structs.replace(stage, overrides={}))
        match = nearest(key, _flat(compose(plain)))
        rest += [f"  did you mean {match}?"] if match else []
    return "\n".join([f"row '{row.label}': {first}", f"  {where}", *rest])


def _names(line: str, key: str) -> bool:
    """True if an error names this override, a section above it or a key inside its value."""
    named = line.split(" ")[0].rstrip(":")
    return f"{named}.".startswith(f"{key}.") or f"{key}.".startswith(f"{named}.")


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """All sections and values by their keys with dots."""
    found = {}
    for key, value in tree.items():
        found[f"{prefix}{key}"] = value
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {}
    return found
