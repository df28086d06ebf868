"""A stage that was made by hand, by `make tokenizer` for one, and is what an experiment asks for, is not made again."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path
from typing import Any

import yaml

from commands.cli.runs import place_outputs
from experiments.runner import Task, compose
from experiments.runs import Run, nested
from experiments.stages import measured, progress

PARTS = ("seed_everything", "model", "data", "trainer")
PLACES = ("default_root_dir", "save_dir", "dirpath")  # where a run is says nothing of what it is


def adopt(tasks: list[Task]) -> dict[Path, Path]:
    """Put a link to a finished run of the same configuration in the place of each missing one; they are returned.

    Runs by hand lie beside the experiments' own root, in `runs/<preset>/<stage>/<name>`, with the configuration of each
    of their starts. All of these but the place must be what is asked for, the stages that it is built upon included.
    Samples are not adopted, for what they were compared with is no part of a configuration. A link whose run has been
    trained further, trained anew or deleted since is taken away.
    """
    found: dict[Path, Path] = {}
    for run in (run for task in tasks for run in task.runs):
        if run.kind.options is not None or run.kind.section == "evaluate":
            continue
        if run.directory.is_symlink():
            if run.state() == "done" and _same(run, run.directory.resolve()):
                continue
            run.directory.unlink()
        if run.state() == "missing":
            places = (run.root.parent / run.preset).glob("*/*")
            hand = next((place for place in places if progress(run.kind, place) == "done" and _same(run, place)), None)
            if hand is not None and _link(run, hand):
                found[run.directory] = hand
    return found


def _same(run: Run, place: Path) -> bool:
    predicts = run.kind.command == "predict"
    files = (
        [place / "config_predict.yaml"] if predicts else [place / "config.yaml", *place.glob("config_resume_*.yaml")]
    )
    if not all(file.exists() for file in files):
        return False
    section, steps = measured(run.kind, place), set()
    for file in files:
        recorded = yaml.safe_load(file.read_text(encoding="utf-8"))
        if not _as_asked(run, place, recorded):
            return False
        steps.add(recorded["trainer"].get("max_steps"))
    if section is None:  # a store of codes: its manifests are written last
        return True
    written = (place / "metrics.json").stat().st_mtime
    return {section.get("global_step")} == steps and all(file.stat().st_mtime <= written for file in files)


def _as_asked(run: Run, place: Path, recorded: dict[str, Any]) -> bool:
    recipe = yaml.safe_load(run.stage.configs(run.preset)[0].read_text(encoding="utf-8"))
    said = {key: value for key, value in run.stage.overrides.items() if not key.endswith("+")}  # added to a list
    said |= {"seed_everything": run.seed, "model.class_path": recipe["model"]["class_path"]}
    if not _contains(recorded, nested(said)):
        return False  # cheap to tell
    asked = compose(run)
    asked["trainer"]["enable_progress_bar"] = recorded["trainer"].get("enable_progress_bar")
    place_outputs(asked["trainer"], place)
    for argument, upon in run.upon.items():
        here, there = _take(asked, argument), _take(recorded, argument)
        if here is None or there is None or Path(there).resolve() != upon.resolve():
            return False
    return all(_contains(recorded.get(part), asked.get(part)) for part in PARTS)


def _take(config: dict[str, Any], key: str) -> Any:
    *parents, last = key.split(".")
    node: Any = config
    for parent in parents:
        node = node.get(parent) or {}
    return node.pop(last, None)


def _contains(recorded: Any, asked: Any) -> bool:
    """Whether all that is asked for is as recorded; the record may say more: what one setting makes of another."""
    if isinstance(asked, dict) and isinstance(recorded, dict):
        return all(_contains(recorded.get(key), value) for key, value in asked.items() if key not in PLACES)
    if isinstance(asked, list) and isinstance(recorded, list):
        return len(asked) == len(recorded) and all(map(_contains, recorded, asked))
    return bool(recorded == asked)


def _link(run: Run, hand: Path) -> bool:
    """Whether the place was free: not if somebody has just begun to make the stage there."""
    run.directory.mkdir(parents=True, exist_ok=True)
    with run.log.open("a") as log:
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        if run.state() != "missing":
            return False
        shutil.rmtree(run.directory)  # a log at most, of a start that did not get far
        run.directory.symlink_to(os.path.relpath(hand, run.directory.parent), target_is_directory=True)
    return True
