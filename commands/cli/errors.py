"""What a user reads when a command cannot run: the key, the place and the remedy instead of jsonargparse's tree.

jsonargparse describes a mistake as an indented tree, with one branch for each type a value might have had. Its deepest
branch is the one that was meant; :func:`explain` finds it and says it in a few lines.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NoReturn

from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from commands.cli.places import Place, broken_yaml, find_key, find_value, read_places
from commands.cli.suggestions import nearest, nearest_class, nearest_file, options_of
from polytoken.errors import UserError

KEY = re.compile(r'^(?:Parser key|Key) "([^"]+)":?(.*)$')
CLASS = re.compile(r"^Problem with given class_path '([^']+)':$")
UNKNOWN_OPTION = re.compile(r"^(?:Group '([^']+)' does not accept option|Option) '([^']+)'")
SUBCOMMAND_OPTION = re.compile(r"^Subcommand '[^']+' does not accept option '([^']+)'")
UNRECOGNIZED = re.compile(r"^unrecognized arguments: (?:--)?([^\s=]+)")
NO_FILE = re.compile(r"File does not exist: '([^']+)'")
NO_CLASS = re.compile(r"^(?:module '.+' has no attribute|No module named|Import path \S+ does not correspond)")
EXPECTED = re.compile(r"^Expected an? (.+?)\.? ?(?:Got value: (.*))?$", re.DOTALL)
REQUIRED = re.compile(r"^the following arguments are required: (?:(?:fit|validate|test|predict)\.)?(.+)$")
GIVEN = re.compile(r"Given value: ([^({\[\n]{1,40})$", re.MULTILINE)  # a scalar; the innermost comes first
NOISE = ("Subtypes:", "Errors:", "Given value", "Does not validate against", "Subclass types expect", "- a ")
LONGEST = 600


class ParseError(UserError):
    """What jsonargparse says of a configuration, as it says it."""


class Parser(LightningArgumentParser):
    """Raises instead of printing its usage and leaving."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise ParseError, but let jsonargparse's own attempts fail in its own way."""
        if not self.exit_on_error:
            super().error(message, ex)
        raise ParseError(message) from ex


@dataclass(frozen=True)
class Problem:
    """The deepest branch of a message: the keys and the class on the way to it, what it says, and of what value."""

    keys: tuple[str, ...]
    class_path: str | None
    texts: tuple[str, ...]
    given: str | None = None


def explain(message: str, arguments: list[str], valid: Iterable[str]) -> str:
    """Say in at most ten lines what is wrong, where it stands and what was probably meant.

    Args:
        message: jsonargparse's text.
        arguments: The command line, without the program's name.
        valid: The keys a command knows, with dots.
    """
    if (missing := NO_FILE.search(message)) is not None:
        path = next((argument for argument in arguments if missing[1].endswith(argument.split("=")[-1])), missing[1])
        path = path.split("=")[-1]
        return f"there is no config file '{path}'{_meant(nearest_file(path))}"
    if (broken := broken_yaml(arguments)) is not None:
        return broken
    places = read_places(arguments)
    problem = deepest(message)
    text = problem.texts[0]
    unknown = UNRECOGNIZED.match(text) or SUBCOMMAND_OPTION.match(text) or UNKNOWN_OPTION.match(text)
    if unknown is not None:
        return _unknown_option(".".join(filter(None, unknown.groups())), problem, places, list(valid))
    if NO_CLASS.match(text) and (problem.class_path or "Import path" in text):
        path = problem.class_path if not text.startswith("Import path") else text.split()[2]
        place = find_value(places, path)
        reason = text.split(path, 1)[1].strip() if text.startswith("Import path") else "does not exist"
        meant = nearest_class(path) if reason == "does not exist" else None
        return f"{_name(place, (*problem.keys, 'class_path'))} '{path}' {reason}{_where(place)}{_meant(meant)}"
    place = find_key(places, problem.keys)
    name = _name(place, problem.keys)
    text = f"{name}{': ' if name else ''}{_expectation(problem.texts, problem.given)}{_where(place)}"[:LONGEST]
    if problem.given == "None":  # jsonargparse makes this word of a null below a class
        text += "\n  null cannot be given here on the command line: write it in a file, and add --config FILE"
    return text


def deepest(message: str) -> Problem:
    """The branch of jsonargparse's tree that names most keys and classes; the texts of equally deep ones together."""
    best: dict[tuple[str, ...], list[str]] = {}
    stack: list[tuple[int, str]] = []
    for line in filter(str.strip, message.splitlines()):
        body = line.strip()
        indent = len(line) - len(line.lstrip()) + (2 if body.startswith("- ") else 0)
        while stack and stack[-1][0] >= indent:
            stack.pop()
        body = body.removeprefix("- ")
        if body.startswith(NOISE):
            continue
        if (key := KEY.match(body)) is not None:
            stack.append((indent, f"key {key[1]}"))
            body = key[2].strip()
        elif (found := CLASS.match(body)) is not None:
            stack.append((indent, f"class {found[1]}"))
            body = ""
        if body:
            best.setdefault(tuple(entry for _, entry in stack), []).append(body)
    if not best:
        return Problem((), None, (message.strip(),))
    way = max(best, key=len)
    keys = tuple(part for entry in way if entry.startswith("key ") for part in entry[4:].split("."))
    classes = [entry[6:] for entry in way if entry.startswith("class ")]
    given = GIVEN.search(message)
    return Problem(keys, classes[-1] if classes else None, tuple(best[way]), given[1] if given else None)


def _unknown_option(option: str, problem: Problem, places: list[Place], valid: list[str]) -> str:
    """Name the key that nothing accepts, and what is accepted on its level."""
    names = options_of(problem.class_path) if problem.class_path else valid
    keys, level = _first_unknown(tuple(option.split(".")), names)
    section = f"the section '{'.'.join(keys[:-1])}'" if keys[:-1] else "any command"
    place = find_key(places, (*problem.keys, *keys))
    name = _name(place, (*problem.keys, *keys))
    return (
        f"{name} is not an option of {problem.class_path or section}{_where(place)}{_meant(nearest(keys[-1], level))}"
    )


def _first_unknown(keys: tuple[str, ...], valid: list[str]) -> tuple[tuple[str, ...], list[str]]:
    """Cut the keys after the first one that does not exist, and list what does exist there."""
    for depth in range(len(keys)):
        prefix = [*keys[:depth]]
        level = {k.split(".")[depth] for k in valid if k.split(".")[:depth] == prefix and len(k.split(".")) > depth}
        if keys[depth] not in level:
            return keys[: depth + 1], sorted(level)
    return keys, []


def _expectation(texts: tuple[str, ...], given: str | None) -> str:
    """Say the values that are accepted, instead of one sentence for each type."""
    texts = tuple(text for text in texts if not text.startswith("Expected a path but")) or texts
    found = [EXPECTED.match(text) for text in texts]
    if not all(found):
        return REQUIRED.sub(r"\1 is not set, and has no default", texts[0])
    types = dict.fromkeys(_type(match[1]) for match in found)
    got = next((match[2] for match in found if match[2]), given)
    return f"expected {' or '.join(types)}" + (f", got '{got}'" if got else "")


def _type(text: str) -> str:
    """A type as a user would say it."""
    text = re.sub(r"<class '(?:.*\.)?(.+)'>", r"\1", text.removeprefix("typing."))
    text = re.sub(r"^dot import path string.*", "a class path", text)
    return re.sub(r"^Literal\[(.*)\]$", r"\1", text).replace("NoneType", "null")


def _name(place: Place | None, keys: Iterable[str]) -> str:
    return place.key if place else ".".join(keys)


def _where(place: Place | None) -> str:
    return f"\n  {place.where}" if place else ""


def _meant(name: Any) -> str:
    return f"\n  did you mean {name}?" if name else ""


def refused_by_constructor(error: BaseException) -> UserError:
    """Say what a constructor refused, and where; jsonargparse wraps it into a tree of its own.

    Anything but a refused value is a fault of the code and is raised as it is, with its traceback.
    """
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    # one of our own errors may wrap a library error, e.g. an unreadable torch file
    error = next((one for one in chain if isinstance(one, UserError)), chain[-1])
    if isinstance(error, UserError | MisconfigurationException):
        return UserError(str(error))
    raise error from None


def refused_at_run_time(error: Exception) -> UserError | None:
    """The sentence to print for an error raised while a command runs; None for a fault of the code.

    Lightning raises FileNotFoundError with a sentence of its own; the operating system's carry an error number.
    """
    if isinstance(error, UserError):
        return error
    if isinstance(error, FileNotFoundError) and error.errno is None:
        return UserError(str(error))
    return None
