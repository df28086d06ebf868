"""Shared frame of the programs: options, tables, and one sentence with exit code 2 for a mistake of the user."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Iterable, Sequence
from io import TextIOWrapper
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from artifacts.results import Table

from artifacts.display import plain_console
from polytoken.errors import UserError


def new_parser(module: str, doc: str | None) -> ArgumentParser:
    """Parser of `python -m <module>`, described by the first paragraph of the module's docstring."""
    description = " ".join((doc or "").strip().split("\n\n")[0].split())
    return ArgumentParser(prog=f"python -m {module}", description=description)


def whole_number(least: int) -> Callable[[str], int]:
    """Type of an option: a whole number, no less than this."""

    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise ArgumentTypeError(f"expected a whole number of at least {least}, got '{text}'")
        return int(text)

    return number


def run(
    parser: ArgumentParser, work: Callable[[Namespace], int | None], arguments: Sequence[str] | None = None
) -> None:
    """Parse the arguments and do the work; exit unless the code that it returns is 0 or None.

    A `UserError` or an error of the operating system is printed as one sentence, with exit code 2. Every other
    exception is a fault of the code and keeps its traceback.
    """
    print_any_name()
    given = parser.parse_args(arguments)
    try:
        code = work(given)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    if code:
        sys.exit(code)


def print_any_name() -> None:
    """Let stdout write an escape for what is no Unicode, as stderr does."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def print_table(
    title: str, head: Sequence[str], rows: Iterable[Sequence[str]], notes: Iterable[str] = (), left: int = 1
) -> None:
    """Print a table and the notes below it; in a narrow terminal words wrap, in a file nothing does.

    Args:
        title: above the table.
        head: names of the columns.
        rows: a cell per column.
        notes: sentences below the table; each is printed once.
        left: number of leading columns that hold words and are aligned left; the others are aligned right.
    """
    from rich.measure import Measurement
    from rich.table import Table

    console, table = plain_console(), Table(title=title)
    for index, name in enumerate(head):
        words = index < left
        table.add_column(name, justify="left" if words else "right", no_wrap=not words, overflow="fold")
    for row in rows:
        table.add_row(*row)
    if not console.is_terminal:
        wide = console.options.update(max_width=10_000)
        console.width = max(console.width, Measurement.get(console, wide, table).maximum)
    console.print(table)
    for note in dict.fromkeys(notes):
        console.print(f"note: {note}")


def print_tables(tables: Iterable[Table]) -> None:
    """Print tables that the report shows as well, each below its caption."""
    for table in tables:
        print_table(table.caption, table.head, table.rows)


def best_device() -> torch.device:
    """The first GPU, or the CPU."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
