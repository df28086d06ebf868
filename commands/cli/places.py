"""Where a key stands: in which config file and line, or on the command line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml


@dataclass(frozen=True)
class Place:
    """One key with its value, as somebody wrote it down."""

    path: tuple[str, ...]
    value: str | None
    where: str

    @property
    def key(self) -> str:
        """The whole path with dots."""
        return ".".join(self.path)


def config_files(arguments: list[str]) -> Iterator[tuple[tuple[str, ...], Path]]:
    """The readable YAML files among the arguments, each with the keys its content hangs under (--model FILE)."""
    pairs = [argument.split("=", 1) for argument in arguments]
    for index, pair in enumerate(pairs):
        name, value = pair if len(pair) == 2 else (arguments[index - 1] if index else "", pair[0])
        if value.endswith((".yaml", ".yml", ".json")) and Path(value).is_file():
            key = name.lstrip("-")
            yield (() if key in ("c", "config") else tuple(key.split("."))), Path(value)


def broken_yaml(arguments: list[str]) -> str | None:
    """Name the first config file that is no YAML, with the line; None if all can be read."""
    for _, file in config_files(arguments):
        try:
            yaml.safe_load(file.read_text(encoding="utf-8"))
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 0
            return f"this is not YAML: {error.problem}\n  in {file}, line {line}"
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            return f"this is not YAML: {error}\n  in {file}"
    return None


def read_places(arguments: list[str]) -> list[Place]:
    """All keys of the config files and of the command line, in the order in which they override each other."""
    places: list[Place] = []
    for prefix, file in config_files(arguments):
        root = yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        places += _walk(root, prefix, str(file))
    for index, argument in enumerate(arguments):
        if argument.startswith("--"):
            name, separator, value = argument[2:].partition("=")
            following = arguments[index + 1] if index + 1 < len(arguments) else None
            places.append(
                Place(tuple(name.rstrip("+").split(".")), value if separator else following, "on the command line")
            )
    return places


def find_key(places: list[Place], keys: tuple[str, ...]) -> Place | None:
    """The last place that has the last of these keys below all the others, which must come in this order."""
    for place in reversed(places):
        for end in range(len(place.path), 0, -1):
            if keys and place.path[end - 1] == keys[-1] and _passes(place.path[: end - 1], keys[:-1]):
                return Place(place.path[:end], place.value, place.where)
    return None


def find_value(places: list[Place], value: str) -> Place | None:
    """The last place that has this value."""
    return next((place for place in reversed(places) if place.value == value), None)


def _walk(node: yaml.Node | None, path: tuple[str, ...], file: str) -> Iterator[Place]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*path, str(key.value).rstrip("+"))
            text = value.value if isinstance(value, yaml.ScalarNode) else None
            yield Place(here, text, f"in {file}, line {key.start_mark.line + 1}")
            yield from _walk(value, here, file)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _walk(item, (*path[:-1], f"{path[-1]}[{index}]"), file)


def _passes(path: tuple[str, ...], keys: tuple[str, ...]) -> bool:
    """Whether the keys occur in the path in this order; `callbacks[2]` counts as `callbacks`."""
    names = iter(name.split("[")[0] for name in path)
    return all(key in names for key in keys)
