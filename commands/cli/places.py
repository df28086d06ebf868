"""Places of keys in config files and on the command line, and the name most like a misspelt one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from itertools import zip_longest
from pathlib import Path

import yaml

from artifacts import yaml_files
from polytoken.errors import MissingFileError, UserError

CONFIG = ("config", "c")
Place = tuple[tuple[str, ...], str, str]  # keys, value of a scalar, file and line


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The name most like this one, or None if none is like it."""
    return next(iter(get_close_matches(name, list(names), n=1)), None)


def nearest_file(path: Path) -> Path | None:
    """The file in the same directory whose name is most like this one."""
    name = nearest(path.name, (file.name for file in path.parent.glob("*")))
    return path.parent / name if name else None


def config_files(arguments: list[str]) -> Iterator[str]:
    """The values of `--config`."""
    return (value for name, value in _options(arguments) if name in CONFIG and value is not None)


def check_files(arguments: list[str]) -> None:
    """Raise UserError if a config file is missing, is not YAML, is empty, or has anything but keys at its top."""
    for file in config_files(arguments):
        if not isinstance(compose(Path(file)), yaml.MappingNode):
            raise UserError(f"{file} has no keys at its top: write `section: …`, as in configs/vq.yaml")


def read_places(arguments: list[str]) -> Iterator[Place]:
    """All keys of the config files and of the command line, in the order in which they override each other.

    Raises:
        UserError: a config file is missing or is not YAML.
    """
    for name, value in _options(arguments):
        if name in CONFIG and value is not None:
            yield from _nodes(compose(Path(value)), (), value)
        else:
            keys = tuple(name.rstrip("+").split("."))
            yield from ((keys[:end], value or "", "on the command line") for end in range(1, len(keys) + 1))


def find(places: list[Place], keys: tuple[str, ...], value: str = "") -> Place | None:
    """The last place with this value (if one is given) at the last key, below the other keys in their order."""
    for place in reversed(places):
        *above, last = (key.split("[")[0] for key in place[0])
        way = iter(above)
        if keys[-1:] == (last,) and all(key in way for key in keys[:-1]) and value in ("", place[1]):
            return place
    return None


def compose(file: Path) -> yaml.Node | None:
    """The nodes of a YAML file; raises UserError if it is missing, or with the line at which it is not YAML."""
    if not file.is_file():
        meant = nearest_file(file)
        raise MissingFileError(f"there is no config file '{file}'" + (f"\n  did you mean {meant}?" if meant else ""))
    return yaml_files.compose(file)


def _options(arguments: list[str]) -> Iterator[tuple[str, str | None]]:
    """Names without dashes, and values; that of a last word without `=` is None."""
    for argument, following in zip_longest(arguments, arguments[1:]):
        if argument.startswith("-"):
            name, separator, value = argument.lstrip("-").partition("=")
            yield name, value if separator else following


def _nodes(node: yaml.Node | None, keys: tuple[str, ...], file: str) -> Iterator[Place]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            below = (*keys, str(key.value).rstrip("+"))
            text = value.value if isinstance(value, yaml.ScalarNode) else ""
            yield below, text, f"in {file}, line {key.start_mark.line + 1}"
            yield from _nodes(value, below, file)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _nodes(item, (*keys[:-1], f"{keys[-1]}[{index}]"), file)
