"""Start a stage, unless its run is finished as requested: `python -m commands.stage [--named] RUN -- COMMAND`.

The command ends in `cli.py` and its arguments, and takes the place of this program. A finished run is compared with the
configuration that the arguments ask for. Equal: nothing to do. Only more steps: it resumes. Otherwise a stage that the
command line of make names (--named) is refused; one that others need stays as it was made, with a note. A finished fit
whose inputs were made again is refused, since it would train no step with them. Composing a configuration takes
seconds, so it happens only if arguments or digests of files differ from those recorded.
"""

from __future__ import annotations

import os
import shlex
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any, TypedDict

from artifacts import yaml_files
from artifacts.completion import Completion, completion, text_digest
from artifacts.origin import digests, made_again
from artifacts.repository import BASE_CONFIG
from commands.processes import take_machine
from commands.program import new_parser, run
from polytoken import records
from polytoken.errors import UserError
from polytoken.files import is_full

COMPARED = "compared.json"
SHOWN = 5
STEPS = "trainer.max_steps"


class Compared(TypedDict):
    """`compared.json`: the last comparison of a finished run."""

    config: str  # digest of the configuration of the run, as in done.json
    arguments: list[str]
    configs: dict[str, str]
    changes: list[tuple[str, Any, Any]]
    processes: tuple[int, int] | None  # there and asked, of a fit on another number


def starts(directory: Path, asked: list[str], named: bool) -> bool:
    """True if a stage has to start; says why not, or with what difference.

    Args:
        directory: Of its run.
        asked: Arguments of `cli.py`.
        named: Whether the command line of make names the stage. Otherwise ARGS of earlier starts stay with the run.

    Raises:
        UserError: a named stage is finished with other settings, or an input of a finished fit was made again.
    """
    done = completion(directory)
    if done is None or _leads_elsewhere(directory, asked):
        return True
    origin = done.get("origin")
    if origin is not None and (place := made_again(origin)):
        if done["command"] == "fit":
            raise UserError(
                f"{directory} was trained with {place}, which was made again since: delete {directory} to train it "
                f"again, or restore {place}"
            )
        print(f"{directory}: {place} was made again since", flush=True)
        return True
    if not named and origin is None:  # made by hand, and by an earlier version
        return False
    compared = _compare(directory, done, asked if named or origin is None else origin["arguments"])
    if not named and compared and _only_more_steps(compared["changes"]):  # it would start with the arguments of now
        compared = _compare(directory, done, asked)
    if not compared or not compared["changes"]:
        if named:
            print(f"{directory} is finished, {_ending(compared)}")
        return False
    changes = compared["changes"]
    if compared["processes"]:  # another global batch
        changes = [*changes, ("processes", *compared["processes"])]
    if _only_more_steps(changes):
        print(f"{directory} resumes from step {changes[0][1]} to {changes[0][2]}", flush=True)
        return True
    shown = ", ".join(f"{short(key)} {_text(old)} → {_text(new)}" for key, old, new in changes[:SHOWN])
    shown += f" and {len(changes) - SHOWN} more" if len(changes) > SHOWN else ""
    if named:
        raise UserError(
            f"{directory} is finished with other settings (there → asked: {shown}): RUN=name makes a variant next to "
            "it, and deleting it starts it again"
        )
    print(f"note: {directory} stays as it was made, with other settings than now (there → now: {shown})", flush=True)
    return False


def short(key: str) -> str:
    """A key as the command line takes it."""
    return key.replace(".init_args", "")


def _ending(compared: Compared | None) -> str:
    """End of the message about a finished stage none of whose settings differs."""
    if compared is None:
        return "and its settings are not recorded: nothing to do"
    if compared["processes"] is None:
        return "with these settings: nothing to do"
    before, now = compared["processes"]
    return (
        f"with these settings but trained on {before} process(es), not on the {now} that are asked for: nothing to do. "
        f"data.batch_size counts per process, so that a run on {now} has another global batch: RUN=name makes it as a "
        "variant next to this one, and deleting this one starts it again"
    )


def _leads_elsewhere(directory: Path, asked: list[str]) -> bool:
    """True if ARGS put the run into a place that make does not know."""
    from commands.cli.places import read_places

    run = {".".join(keys): value for keys, value, _ in read_places(asked) if keys[0] == "run"}
    return directory != Path(run.get("run.root", "runs"), run.get("run.preset", "default"), run.get("run.stage", ""))


def _compare(directory: Path, done: Completion, asked: list[str]) -> Compared | None:
    """What differs between a finished run and what is asked; None if the run's settings are not recorded."""
    from commands.cli.places import config_files

    configs = digests([BASE_CONFIG, *map(Path, config_files(asked))])
    origin = done.get("origin")
    now = Compared(config=done["config"], arguments=asked, configs=configs, changes=[], processes=None)
    if origin is not None and (origin["arguments"], origin["configs"]) == (asked, configs):
        return now
    before = records.read_derived(directory / COMPARED, Compared)
    if before is not None and {**before, "changes": [], "processes": None} == now:
        return before
    recorded = _recorded(directory, done)
    if recorded is None:
        return None
    from commands.cli.composed import changes, compose

    composed = compose(asked)
    counts = take_machine(recorded["trainer"]), take_machine(composed["trainer"])
    now["changes"] = changes(recorded, composed)
    if done["command"] == "fit" and counts[0] and counts[1] and counts[0] != counts[1]:
        now["processes"] = counts[0], counts[1]
    try:
        records.write(directory / COMPARED, now)
    except (OSError, UserError) as error:  # it only saves time
        if not isinstance(error, OSError) and not is_full(error):
            raise
    return now


def _recorded(directory: Path, done: Completion) -> dict[str, Any] | None:
    """The configuration of the start that has finished the run."""
    for file in directory.glob("config*.yaml"):
        if text_digest(file.read_text(encoding="utf-8")) == done["config"]:
            return yaml_files.read(file)
    return None


def _only_more_steps(changes: list[tuple[str, Any, Any]]) -> bool:
    if [key for key, _, _ in changes] != [STEPS]:
        return False
    _, old, new = changes[0]
    return isinstance(old, int) and isinstance(new, int) and 0 < old < new


def _text(value: Any) -> str:
    """A value in a few words; a class with its settings by its name."""
    if isinstance(value, dict) and isinstance(path := value.get("class_path"), str):
        return path.rpartition(".")[2]
    if isinstance(value, list):
        value = f"[{', '.join(map(_text, value))}]"
    text = "none" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def work(given: Namespace) -> None:
    """Decide, and become the command."""
    program = next((index for index, word in enumerate(given.command) if Path(word).name == "cli.py"), None)
    if program is None:
        raise UserError("no cli.py follows after --: make -n prints the whole line of a stage")
    if starts(given.run, given.command[program + 1 :], given.named):
        print(shlex.join(given.command), flush=True)
        os.execvp(given.command[0], given.command)


def main(arguments: list[str] | None = None) -> None:
    """Run the program."""
    given = sys.argv[1:] if arguments is None else arguments
    end = given.index("--") if "--" in given else len(given)
    parser = new_parser("commands.stage", __doc__)
    parser.add_argument("run", type=Path, help="directory of the run")
    parser.add_argument("--named", action="store_true", help="the command line of make names this stage")
    parser.set_defaults(command=given[end + 1 :])
    run(parser, work, given[:end])


if __name__ == "__main__":
    main()
