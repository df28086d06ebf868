"""Text of unknown origin, such as names of classes, at the border of the libraries that would read it as markup."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console


def printable(text: str) -> str:
    """The text on one line, with control characters and lone surrogates as escapes, which every encoder accepts."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def for_markdown(text: str) -> str:
    """The text on one line, with an escape before each character that would begin markup, HTML or a link."""
    # an underscore within a word, as in fq_dual, begins no emphasis
    escaped = re.sub(r"([\\`*\[\]|]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", " ".join(text.split()))
    return printable(escaped.replace("<", "&lt;"))


def plain_console() -> Console:
    """Rich's console, without its markup (`[b]`, `[/INST]`) and its names of pictures (`:smile:`)."""
    from rich.console import Console

    return Console(markup=False, emoji=False)


def disable_mathtext(figure: Figure) -> None:
    """Let matplotlib draw titles, labels and legends as they are: `$` and `_{` would be mathematics.

    The powers along a logarithmic axis are mathematics, and matplotlib's own.
    """
    from matplotlib.text import Text
    from matplotlib.ticker import LogFormatter

    powers = {
        label
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        for minor, formatter in enumerate((axis.get_major_formatter(), axis.get_minor_formatter()))
        if isinstance(formatter, LogFormatter)
        for label in axis.get_ticklabels(minor=bool(minor))
    }
    for text in set(figure.findobj(Text)) - powers:
        text.set_parse_math(False)
        text.set_text("\n".join(map(printable, text.get_text().split("\n"))))
