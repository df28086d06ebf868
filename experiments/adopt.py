"""Reuse of runs made by hand, for example by `make tokenizer`, that have the configuration of a missing stage."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path
from typing import Any

from artifacts import yaml_files
from commands.cli.composed import changes
from commands.processes import take_machine
from experiments.check import compose
from experiments.stages import measured, progress
from experiments.tasks import Run, Task, nested
from polytoken.files import real_path


def adopt(tasks: list[Task]) -> dict[Path, Path]:
    """Link finished runs of the same configuration in place of missing ones; returns the links and their targets.

    Runs by hand are in `runs/<preset>/<stage>/<name>`, next to the experiments' root, with the configuration of each
    of their starts. Each must equal the stage's in all but places, inputs included. Samples are not adopted: their
    reference is not part of a configuration. A link is removed if its run was trained further, retrained or deleted.
    On which machines a run was made plays no part, except for the number of processes of a fit.
    """
    found: dict[Path, Path] = {}
    for run in (run for task in tasks for run in task.runs):
        if run.stage.is_program or run.kind.section == "evaluate":
            continue
        if run.directory.is_symlink():
            if run.state == "done" and _is_same(run, real_path(run.directory)):
                continue
            run.directory.unlink()
        if run.state == "missing":
            places = (run.root.parent / run.preset).glob("*/*/")
            by_hand = (place for place in places if progress(run.kind, place) == "done" and _is_same(run, place))
            place = next(by_hand, None)
            if place is not None and _link(run, place):
                found[run.directory] = place
    return found


def release(tasks: list[Task]) -> dict[Path, OSError]:
    """Remove the links whose run was trained further, retrained with other overrides, or deleted since.

    Returns:
        Links that could not be removed, and why.
    """
    failed: dict[Path, OSError] = {}
    for directory, run in {run.directory: run for task in tasks for run in task.runs}.items():
        if directory.is_symlink() and not (run.state == "done" and _starts_alike(run, real_path(directory))):
            try:
                directory.unlink(missing_ok=True)  # by another command at the same time
            except OSError as error:
                failed[directory] = error
    return failed


def _is_same(run: Run, place: Path) -> bool:
    """True if every start of the finished run at this place had the stage's configuration."""
    starts = _starts_alike(run, place)  # first, for composing takes a second
    return bool(starts) and all(_has_configuration(run, config) for config in starts)


def _starts_alike(run: Run, place: Path) -> list[dict[str, Any]]:
    """Configurations of the starts of a finished run, if each has the stage's overrides and its number of steps."""
    predicts = run.kind.command == "predict"
    first = place / ("config_predict.yaml" if predicts else "config.yaml")
    files = [first, *([] if predicts else place.glob("config_resume_*.yaml"))]
    configs = [yaml_files.read(file) for file in files if file.exists()]
    recipe = yaml_files.read(run.stage.configs(run.preset)[0])
    overrides = {key: value for key, value in run.stage.overrides.items() if not key.endswith("+")}
    overrides |= {"seed_everything": run.seed, "model.class_path": recipe["model"]["class_path"]}
    if not first.exists() or not all(_contains(config, nested(overrides)) for config in configs):
        return []
    section = measured(run.kind, place)
    steps = {config["trainer"].get("max_steps") for config in configs}
    return configs if section is None or steps == {section.get("global_step")} else []  # None: of a token store


def _has_configuration(run: Run, recorded: dict[str, Any]) -> bool:
    asked = compose(run)
    counts = take_machine(asked["trainer"]), take_machine(recorded["trainer"])
    if run.kind.command == "fit" and counts[0] != counts[1]:
        return False
    for argument, directory in run.inputs.items():
        here, there = _pop(asked, argument), _pop(recorded, argument)
        if here is None or there is None or real_path(there) != real_path(directory):
            return False
    return not changes(recorded, asked)


def _contains(recorded: Any, given: Any) -> bool:
    """True if a configuration has all given values."""
    if isinstance(recorded, dict) and isinstance(given, dict):
        return all(_contains(recorded.get(key), value) for key, value in given.items())
    if isinstance(recorded, list) and isinstance(given, list) and len(recorded) == len(given):
        return all(map(_contains, recorded, given))
    return recorded == given


def _pop(config: dict[str, Any], key: str) -> Any:
    *parents, last = key.split(".")
    node: Any = config
    for parent in parents:
        node = node.get(parent) or {}
    return node.pop(last, None)


def _link(run: Run, place: Path) -> bool:
    """Replace the missing run by a link; False if another process has just started it."""
    run.directory.mkdir(parents=True, exist_ok=True)
    with run.log.open("a") as log:
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        if run.state != "missing":
            return False
        shutil.rmtree(run.directory)  # at most the log of a start that failed early
        run.directory.symlink_to(os.path.relpath(place, run.directory.parent), target_is_directory=True)
    return True
