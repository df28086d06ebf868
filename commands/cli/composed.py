"""Composition of a configuration by the parser of `cli.py`, and its comparison with that of a run."""

from __future__ import annotations

import contextlib
import io
import warnings
from typing import Any

import yaml

PARTS = ("seed_everything", "model", "data", "trainer")
PLACES = ("default_root_dir", "save_dir", "dirpath")  # the place of a run is not part of its identity

Change = tuple[str, Any, Any]  # key with dots, recorded value, asked value


def compose(arguments: list[str]) -> dict[str, Any]:
    """The whole configuration that arguments of `cli.py` ask for; nothing is instantiated.

    Raises:
        UserError: if they do not parse.
    """
    import cli  # takes ten seconds, which most callers do not need

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
        with contextlib.suppress(SystemExit):  # printing the configuration ends the program
            cli.CommandLine([*arguments, "--print_config"])
    return yaml.safe_load(printed.getvalue())


def changes(recorded: dict[str, Any], asked: dict[str, Any]) -> list[Change]:
    """Settings in which a run differs from what is asked, besides its place.

    The record may hold more than is asked: values that one setting derives from another.
    """
    return [change for part in PARTS if part in asked for change in _changes(recorded.get(part), asked[part], part)]


def _changes(old: Any, new: Any, key: str) -> list[Change]:
    if isinstance(old, dict) and isinstance(new, dict):
        below = [_changes(old.get(name), value, f"{key}.{name}") for name, value in new.items() if name not in PLACES]
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        below = [_changes(a, b, f"{key}[{index}]") for index, (a, b) in enumerate(zip(old, new, strict=True))]
    else:
        return [] if old == new else [(key, old, new)]
    return [change for found in below for change in found]
