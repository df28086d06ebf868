"""Composition of a configuration by the parser of `cli.py`, and its comparison with that of a run."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any, NoReturn

import yaml

from commands.cli.noise import quiet

PARTS = ("seed_everything", "model", "data", "trainer")
PLACES = (".default_root_dir", ".save_dir", ".dirpath")  # the place of a run is not part of its identity

Change = tuple[str, Any, Any]  # key with dots, recorded value, asked value


class _ComposedError(Exception):
    """Ends the parser's program as soon as the configuration is there."""


def compose(arguments: list[str]) -> dict[str, Any]:
    """The whole configuration that arguments of `cli.py` ask for, nothing left out; nothing is instantiated.

    Raises:
        UserError: if they do not parse.
    """
    import cli  # takes ten seconds, which most callers do not need

    class Composition(cli.CommandLine):
        def _parse_ckpt_path(self) -> NoReturn:  # what LightningCLI calls after the parser
            raise _ComposedError(self.text(self.config.subcommand))

    quiet()
    try:
        Composition(arguments)
    except _ComposedError as composed:
        return yaml.safe_load(str(composed))
    raise AssertionError("LightningCLI calls _parse_ckpt_path")


def changes(recorded: dict[str, Any], asked: dict[str, Any]) -> list[Change]:
    """Settings in which a run differs from what is asked, besides its place; a missing setting counts as none."""
    from callbacks.checkpoint.run_record import NOT_SET, differences  # torch
    from commands.cli.runs import place_outputs

    trainer = {**deepcopy(asked["trainer"]), "enable_progress_bar": recorded["trainer"].get("enable_progress_bar")}
    place_outputs(trainer, Path())  # as `cli.py` does before it records a configuration
    asked = {**asked, "trainer": trainer}
    pairs = (differences(recorded.get(part), asked.get(part), part) for part in PARTS)
    found = (change for pair in pairs for change in pair if not change[0].endswith(PLACES))
    return [(key, old, new) for key, old, new in found if old not in (None, NOT_SET) or new not in (None, NOT_SET)]
