"""Templates of the files that the programs write, next to this module."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from artifacts.display import for_markdown


def templates() -> Environment:
    """The templates; `plain` makes any text safe in Markdown, and HTML escapes by itself."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=lambda name: name == "report.html.j2",
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["plain"] = for_markdown
    return environment
