"""Composition of a configuration by the parser of `cli.py`, and its comparison with that of a run."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import yaml

from commands.cli.field_names import in_the_model
from commands.cli.noise import quiet
from commands.cli.places import check_files

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

PARTS = ("seed_everything", "model", "data", "trainer")
PLACES = (".default_root_dir", ".save_dir", ".dirpath")  # the place of a run is not part of its identity

Change = tuple[str, Any, Any]  # key with dots, recorded value, asked value


class _BuiltError(Exception):
    """Ends the constructor of LightningCLI as soon as its parsers are there."""


def compose(arguments: list[str]) -> dict[str, Any]:
    """The whole configuration that arguments of `cli.py` ask for, nothing left out; nothing is instantiated.

    Raises:
        UserError: if they do not parse.
    """
    return yaml.safe_load(dump(*parse(arguments)))


def parse(arguments: list[str]) -> tuple[ArgumentParser, Namespace]:
    """The parser of a command of `cli.py`, and what it makes of the arguments; raises as :func:`compose` does."""
    from commands.cli.errors import explained, reordered

    parsers = _parsers()
    command, *rest = arguments = reordered(arguments, parsers)
    check_files(arguments)
    with explained(arguments, parsers):
        config = parsers[command].parse_args(rest)
    settle(config)
    return parsers[command], config


def settle(config: Namespace) -> list[str]:
    """Reject numbers that Lightning fails on, and give the model what it takes over from the trainer; returns notes."""
    from commands.cli.checks import check_numbers

    check_numbers(config.seed_everything, config.trainer)
    return in_the_model(config.trainer, (config.get("model") or {}).get("init_args") or {})


def dump(parser: ArgumentParser, config: Namespace) -> str:
    """A parsed configuration as YAML, nothing left out."""
    return parser.dump(config, skip_unset=False, skip_link_targets=False, skip_validation=True)


@cache
def _parsers() -> dict[str, ArgumentParser]:
    """The parsers of `cli.py`, by command."""
    import cli  # takes ten seconds, which most callers do not need

    class Unparsed(cli.CommandLine):
        def parse_arguments(self, *_: Any) -> NoReturn:  # what LightningCLI calls after it has built the parsers
            raise _BuiltError(self._subcommand_parsers)

    quiet()
    try:
        Unparsed([])
    except _BuiltError as built:
        return built.args[0]
    raise AssertionError("LightningCLI calls parse_arguments")


def changes(recorded: dict[str, Any], asked: dict[str, Any]) -> list[Change]:
    """Settings in which a run differs from what is asked, besides its place; a missing setting counts as none."""
    from callbacks.checkpoint.run_record import differences  # torch
    from commands.cli.runs import place_outputs

    trainer = {**deepcopy(asked["trainer"]), "enable_progress_bar": recorded["trainer"].get("enable_progress_bar")}
    place_outputs(trainer, Path())  # as `cli.py` does before it records a configuration
    asked = {**asked, "trainer": trainer}
    pairs = (differences(recorded.get(part), asked.get(part), part) for part in PARTS)
    return [change for pair in pairs for change in pair if not change[0].endswith(PLACES)]
