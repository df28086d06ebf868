"""Check of the names of configuration files, before the imports of `cli.py` take their seconds."""

from __future__ import annotations

import sys
from pathlib import Path

from commands.cli.places import check_files
from polytoken.errors import UserError


def check(arguments: list[str]) -> None:
    """End the program as `cli.py` does if a configuration file is missing or has no keys."""
    try:
        check_files(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if Path(sys.argv[0]).name == "cli.py":
    check(sys.argv[1:])
