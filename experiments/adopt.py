"""Reuse of runs made by hand, for example by `make tokenizer`, that have the configuration of a missing stage."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path
from typing import Any

from artifacts import yaml_files
from commands.cli.composed import changes
from experiments.check import compose
from experiments.stages import measured, progress
from experiments.tasks import Run, Task, nested
from polytoken.files import real_path


def adopt(tasks: list[Task]) -> dict[Path, Path]:
    """Link finished runs of the same configuration in place of missing ones; returns the links and their targets.

    Runs by hand are in `runs/<preset>/<stage>/<name>`, next to the experiments' root, with the configuration of each
    of their starts. Each must equal the stage's in all but places, inputs included. Samples are not adopted: their
    reference is not part of a configuration. A link is removed if its run was trained further, retrained or deleted.
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


def _is_same(run: Run, place: Path) -> bool:
    """True if every start of the finished run at this place had the stage's configuration."""
    predicts = run.kind.command == "predict"
    first = place / ("config_predict.yaml" if predicts else "config.yaml")
    files = [first, *([] if predicts else place.glob("config_resume_*.yaml"))]
    if not first.exists():
        return False
    configs = [yaml_files.read(file) for file in files]
    if not all(_has_configuration(run, config) for config in configs):
        return False
    section = measured(run.kind, place)
    if section is None:  # a token store
        return True
    steps = {config["trainer"].get("max_steps") for config in configs}
    return steps == {section.get("global_step")}


def _has_configuration(run: Run, recorded: dict[str, Any]) -> bool:
    # a quick test first: composing takes a second
    recipe = yaml_files.read(run.stage.configs(run.preset)[0])
    overrides = {key: value for key, value in run.stage.overrides.items() if not key.endswith("+")}
    overrides |= {"seed_everything": run.seed, "model.class_path": recipe["model"]["class_path"]}
    if not _contains(recorded, nested(overrides)):
        return False
    asked = compose(run)
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
