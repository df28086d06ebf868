"""State of every stage of a preset: `python -m commands.status --preset digits tokenizer/fq_dual tokens/fq_dual`.

Prints the named stages of a curriculum and all other runs of the preset, in order: finished, unfinished with its step,
or not begun, and how long ago the last file was written. `done.json` marks a finished stage (artifacts.completion).
"""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from artifacts import yaml_files
from artifacts.completion import DONE, completion
from commands.program import new_parser, print_table, run
from polytoken.errors import UserError
from polytoken.layout import CHECKPOINTS, LAST
from polytoken.text import duration

ORDER = ("teacher", "tokenizer", "tokens", "stage1", "stage2")  # other generators and samples follow


@dataclass(frozen=True)
class Stage:
    """A stage's directory and what is known of it.

    Args:
        name: its path below the preset: `tokenizer/fq_dual`.
        state: finished, unfinished or not begun.
        step: optimizer steps done; None where nothing is trained.
        steps: those that its configuration asks for.
        age: seconds since its last file was written; None if it has none.
    """

    name: str
    state: str
    step: int | None = None
    steps: int | None = None
    age: float | None = None


def stages(root: Path, expected: list[str]) -> list[Stage]:
    """All stages below a preset's directory, and those that are expected, in the order of the curriculum."""
    found = {str(path.parent.relative_to(root)) for path in root.glob("*/*/config*.yaml")}
    return sorted((_stage(root, name) for name in found | {*expected}), key=_order)


def _stage(root: Path, name: str) -> Stage:
    directory = root / name
    files = [path for path in (directory, *directory.glob("*"), *directory.glob(f"{CHECKPOINTS}/*")) if path.exists()]
    if not files:
        return Stage(name, "not begun")
    age = time.time() - max(path.stat().st_mtime for path in files)
    done = completion(directory)
    if done is not None:
        return Stage(name, "finished", done.get("step"), None, time.time() - (directory / DONE).stat().st_mtime)
    return Stage(name, "unfinished", _step(directory), _steps(directory), age)


def _step(directory: Path) -> int | None:
    """Step of the last checkpoint; None without one, or if it cannot be read."""
    path = directory / CHECKPOINTS / LAST
    if not path.exists():
        return None
    from polytoken.loading import recorded_step  # torch: seconds that a finished curriculum does not need

    return recorded_step(path)


def _steps(directory: Path) -> int | None:
    """`trainer.max_steps` of the recorded configuration."""
    try:
        steps = yaml_files.read(directory / "config.yaml")["trainer"]["max_steps"]
    except (UserError, KeyError, TypeError):  # a broken file: the table shows the stage without it
        return None
    return steps if isinstance(steps, int) and steps > 0 else None


def _order(stage: Stage) -> tuple[int, str]:
    kind = stage.name.split("/")[0]
    return (ORDER.index(kind) if kind in ORDER else len(ORDER) + (kind == "samples"), stage.name)


def _row(stage: Stage) -> Iterator[str]:
    yield stage.name
    yield stage.state
    of = f" of {stage.steps:,}" if stage.steps else ""
    yield "" if stage.step is None else f"{stage.step:,}{of}"
    yield "" if stage.age is None else f"{duration(max(stage.age, 0))} ago"


def work(given: Namespace) -> None:
    """Print the table, the first stage of the curriculum that is not finished, and what to do next."""
    found = stages(given.runs / given.preset, given.stages)
    print_table(f"{given.runs / given.preset}", ("stage", "state", "step", "last written"), map(_row, found), left=2)
    states = {stage.name: stage.state for stage in found}
    missing = next((name for name in given.stages if states[name] != "finished"), None)
    if given.stages:
        first = "" if missing is None else f"{missing} is {states[missing]}{'; ' if given.next else ''}{given.next}"
        print(f"the curriculum is not complete: {first}" if first else "the curriculum is complete")


def main(arguments: list[str] | None = None) -> None:
    """Run the program."""
    parser = new_parser("commands.status", __doc__)
    parser.add_argument("--preset", default="digits", help="preset whose runs are listed")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="root of all runs")
    parser.add_argument("--next", default="", help="what to do next, printed while the curriculum is not complete")
    parser.add_argument("stages", nargs="*", help="stages of a curriculum, in their order: tokenizer/fq_dual")
    run(parser, work, arguments)


if __name__ == "__main__":
    main()
