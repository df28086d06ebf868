"""YAML files, read with limits: size, nesting, and the number of nodes that aliases expand to."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from polytoken.errors import MissingFileError, UserError
from polytoken.files import check_no_pipe

BYTES = 1 << 22
NODES = 100_000  # an alias counts as what it stands for
DEPTH = 100
SURROGATE = re.compile("[\ud800-\udfff]")


def read(path: Path) -> Any:
    """Plain data of a YAML file.

    Raises:
        MissingFileError: there is no such file.
        UserError: it is not YAML, names Python objects, or exceeds a limit; the message has its line.
    """
    text = _text(path)
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date or number that does not exist
        raise _refusal(path, error) from error


def compose(path: Path) -> yaml.Node | None:
    """The nodes of a YAML file, with their lines; raises as :func:`read` does."""
    read(path)  # rejects the tags that compose lets pass
    return yaml.compose(_text(path), Loader=yaml.SafeLoader)


def _text(path: Path) -> str:
    """The text of a file within the limits."""
    try:
        check_no_pipe(path)
        with path.open("rb") as file:
            data = file.read(BYTES + 1)
        if len(data) > BYTES:
            raise UserError(f"{path} is larger than {BYTES >> 20} MiB, and no configuration is")
        text = data.decode("utf-8")
        _check_size(text)
    except FileNotFoundError as error:
        raise MissingFileError(f"there is no file {path}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise _refusal(path, error) from error
    return text


def _check_size(text: str) -> None:
    """Raise YAMLError if nodes are nested too deeply, hold themselves, expand to too many, or are no Unicode."""
    open_nodes: list[tuple[str | None, int]] = []
    sizes: dict[str, int] = {}
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, 1))
            if len(open_nodes) > DEPTH:
                raise _error(event, f"nested more than {DEPTH} deep")
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, size = open_nodes.pop()
        elif isinstance(event, yaml.ScalarEvent):
            anchor, size = event.anchor, 1
            if SURROGATE.search(event.value):  # which no file and no terminal can hold
                raise _error(event, "an escape that is half of a character")
        elif isinstance(event, yaml.AliasEvent):
            if any(event.anchor == name for name, _ in open_nodes):
                raise _error(event, f"the alias *{event.anchor} holds itself")
            anchor, size = None, sizes.get(event.anchor, 1)
        else:
            continue
        if anchor:
            sizes[anchor] = size
        if open_nodes:
            outer, count = open_nodes[-1]
            open_nodes[-1] = outer, count + size
        if size > NODES:
            raise _error(event, f"its aliases stand for more than {NODES:,} values")


def _error(event: yaml.Event, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)


def _refusal(path: Path, error: Exception) -> UserError:
    mark = getattr(error, "problem_mark", None)
    reason = "not UTF-8 text" if isinstance(error, UnicodeDecodeError) else getattr(error, "problem", None) or error
    reason = " ".join(str(reason).split())[:200]
    return UserError(f"this is not YAML: {reason}\n  in {path}" + (f", line {mark.line + 1}" if mark else ""))
