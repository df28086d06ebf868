"""A stage that was made by hand, by `make tokenizer` for one, and is what an experiment asks for, is not made again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from commands.runs import place_outputs
from experiments.runner import Task, compose
from experiments.runs import Run, nested
from experiments.stages import progress


def adopt(tasks: list[Task]) -> dict[Path, Path]:
    """Put a link to each finished run of the same configuration in the place of a missing one; they are returned.

    Runs by hand lie beside the experiments' own root, in `runs/<preset>/<stage>/<name>`, with the configuration that
    they were started with. All of it but the place must be equal, the stages that it is built upon included.
    """
    found: dict[Path, Path] = {}
    for run in (run for task in tasks for run in task.runs):
        if run.kind.options is None and run.state() == "missing" and not run.directory.is_symlink():
            hand = next((place for place in _finished(run) if _same(run, place)), None)
            if hand is not None:
                _link(run.directory, hand)
                found[run.directory] = hand
    return found


def _finished(run: Run) -> list[Path]:
    """The finished runs by hand, the newest first."""
    places = (run.root.parent / run.preset).glob(f"*/*/{_record(run)}")
    return sorted(
        (p.parent for p in places if progress(run.kind, p.parent) == "done"), key=lambda p: -p.stat().st_mtime
    )


def _same(run: Run, place: Path) -> bool:
    recorded = yaml.safe_load((place / _record(run)).read_text(encoding="utf-8"))
    recipe = yaml.safe_load(run.stage.configs(run.preset)[0].read_text(encoding="utf-8"))
    said = {key: value for key, value in run.stage.overrides.items() if not key.endswith("+")}  # added to a list
    said |= {"seed_everything": run.seed, "model.class_path": recipe["model"]["class_path"]}
    if not _contains(recorded, nested(said)):
        return False  # cheap to tell
    asked = compose(run)
    trainer = recorded.get("trainer") or {}
    asked["trainer"]["enable_progress_bar"] = trainer.get("enable_progress_bar")
    place_outputs(asked["trainer"], place)
    for argument, upon in run.upon.items():
        here, there = _take(asked, argument), _take(recorded, argument)
        if here is None or there is None or Path(there).resolve() != upon.resolve():
            return False
    return all(
        _contains(recorded.get(part), asked.get(part)) for part in ("seed_everything", "model", "data", "trainer")
    )


def _record(run: Run) -> str:
    return "config_predict.yaml" if run.kind.command == "predict" else "config.yaml"


def _take(config: dict[str, Any], key: str) -> Any:
    *parents, last = key.split(".")
    node: Any = config
    for parent in parents:
        node = node.get(parent) or {}
    return node.pop(last, None)


def _contains(recorded: Any, asked: Any) -> bool:
    """Whether all that is asked for is as recorded; the record may say more: what one setting makes of another."""
    if isinstance(asked, dict) and isinstance(recorded, dict):
        return all(_contains(recorded.get(key), value) for key, value in asked.items())
    if isinstance(asked, list) and isinstance(recorded, list):
        return len(asked) == len(recorded) and all(map(_contains, recorded, asked))
    return bool(recorded == asked)


def _link(directory: Path, hand: Path) -> None:
    directory.parent.mkdir(parents=True, exist_ok=True)
    if directory.exists():  # logs of a start that did not get far
        directory.rename(directory.with_name(f"{directory.name}.before"))
    directory.symlink_to(hand.resolve(), target_is_directory=True)
