"""Short messages for jsonargparse's errors: the key, its file and line, and the nearest valid name.

jsonargparse prints a tree with a branch for each type that a value may have. The branch below most keys is the one that
the user meant.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import traceback
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import NoReturn

from jsonargparse import ArgumentParser
from lightning.pytorch.cli import LightningArgumentParser

from artifacts.repository import REPOSITORY
from commands.cli.field_names import command, of_the_field
from commands.cli.overview import names, overview
from commands.cli.places import find, nearest, read_places
from polytoken.errors import SettingError, UserError

BRANCH = re.compile(r"""(?:Parser key|Key) "([^"]+)":?|Problem with given class_path '([^']+)':""")
UNKNOWN = re.compile(r"(?:Group '([^']+)' does not accept option|accept option|Option|arguments:) '?(?:--)?([^'\s=]+)")
CHOICE = re.compile(r"argument subcommand: invalid choice: '([^']*)' \(choose from (.*)\)")
NO_COMMAND = re.compile(r'expected "subcommand" to be one of \{(.*?)\}')
EXPECTED = re.compile(r"Expected an? (.+?)\.? ?(?:(?:Got value|(?<=import path string)): (.*))?", re.DOTALL)
TYPE = re.compile(r"<class '(?:[\w.]*\.)?(\w+)'>|(?:typing\.)?Literal\[(.*)\]|dot import (path) string.*")
GIVEN = re.compile(r"Given value: ([^({\[\n]+)$", re.MULTILINE)  # of a scalar
NOISE = (
    "Subtypes:",
    "Errors:",
    "Given ",
    "Does not vali",
    "Subclass types",
    "a class path",
    "a dict w",
    "Expected a path",
)


class ParseError(UserError):
    """jsonargparse's text about a configuration that does not parse."""


class Parser(LightningArgumentParser):
    """Parser that raises ParseError instead of printing its usage and exiting."""

    def format_help(self) -> str:
        """Return the help; that of a command ends with the classes that its options take."""
        return super().format_help() + (f"\n{overview()}" if "model" in self.groups else "")

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise ParseError, unless jsonargparse tries one type of several."""
        if not self.exit_on_error:
            super().error(message, ex)
        raise ParseError(message) from ex


def reordered(arguments: list[str], commands: Collection[str]) -> list[str]:
    """The arguments with the command first; `--help` shows `--config` before it, where no key of a command is known."""
    end = 0
    while end < len(arguments) and arguments[end].partition("=")[0] in ("--config", "-c"):
        end += 1 if "=" in arguments[end] else 2
    if 0 < end < len(arguments) and arguments[end] in commands:
        return [arguments[end], *arguments[:end], *arguments[end + 1 :]]
    return arguments


@contextmanager
def explained(arguments: list[str], parsers: Mapping[str, ArgumentParser]) -> Iterator[None]:
    """Raise jsonargparse's error about a command line as a UserError of a few lines; `parsers` are the commands'."""
    try:
        yield
    except ParseError as error:
        command = next((argument for argument in arguments if argument in parsers), None)
        valid = [*parsers[command].get_defaults(skip_validation=True).keys()] if command else []
        raise UserError(explain(str(error), arguments, valid)) from None


def explain(message: str, arguments: list[str], valid: list[str]) -> str:
    """Shorten jsonargparse's message on a command line to a few lines; `valid` are the command's keys, with dots.

    Raises:
        UserError: a config file is missing or is not YAML.
    """
    places = [*read_places(arguments)]
    texts, keys, class_path = _meant(message)
    text, value, meant = f": {texts[0]}", "", None
    if unknown := UNKNOWN.search(texts[0]):
        option = ".".join(filter(None, unknown.groups()))
        wrong, meant = _unknown(option.split("."), _options(class_path) if class_path else valid)
        keys += wrong
        meant = meant or of_the_field(wrong[-1], [place[0] for place in places if place[2].startswith("in ")])
        meant = None if meant == f"--{'.'.join(keys)}" else meant  # known, but not to the class that the recipe names
        text = " is not an option" + (f" of {class_path}" if class_path else "")
    elif class_path and texts[0].startswith(("module ", "No module named")):
        keys, value, meant = (*keys, "class_path"), class_path, nearest_class(class_path)
        text = f": '{class_path}' does not exist"
    elif texts[0].startswith("Import path "):
        keys, value = (*keys, "class_path"), texts[0].split()[2]
    elif "arguments are required: " in texts[0]:
        return _missing((*keys, texts[0].rpartition(": ")[2].removeprefix(f"{arguments[0]}.")), arguments)
    elif choices := NO_COMMAND.search(texts[0]):
        text = f"there is no command: take one of {choices[1].replace(',', ', ')} (python cli.py fit --help)"
    elif choice := CHOICE.search(texts[0]):
        text, value, meant = f"there is no command {choice[1]}: take one of {choice[2]}", choice[1], command(choice[1])
    elif len(found := [match for match in map(EXPECTED.fullmatch, texts) if match]) == len(texts):
        types = dict.fromkeys(TYPE.sub(lambda match: f"{match[1] or match[2] or 'class path'}", m[1]) for m in found)
        value = next((got for got in [*(match[2] for match in found), *GIVEN.findall(message)] if got), "")
        text = f": expected {' or '.join(types)}".replace("NoneType", "null") + (f", got '{value}'" if value else "")
        meant = nearest(value, names()) if "class path" in types else None
    # a class on the command line is the value of the option itself, without `class_path`
    ways = [(keys, value), *([(keys[:-1], value)] if value else []), (keys, ""), (keys[:-1], "")]
    place = next(filter(None, (find(places, *way) for way in ways)), None)
    name = ".".join(place[0] if place and place[0][-1].startswith(keys[-1]) else keys)
    lines = [f"{name}{text}".removeprefix(": ")[:600], *([f"  {place[2]}"] if place else [])]
    lines += [f"  did you mean {meant}?"] if meant else []
    if unknown and class_path and place and "configs/presets/" in place[2]:
        lines += [
            "  a preset file of other recipes? make -n tokenizer TOKENIZER=… shows the files that belong together"
        ]
    if value == "None":  # jsonargparse turns a null below a class into this word
        lines += ["  null cannot be given here on the command line: write it in a file, and add --config FILE"]
    return "\n".join(lines)


def _missing(keys: tuple[str, ...], arguments: list[str]) -> str:
    """A setting without a default that nothing gives, and what gives it."""
    text = f"{'.'.join(keys)} is not set, and has no default"
    if keys == ("model",):
        files = "--config configs/fq_dual.yaml --config configs/presets/digits/tokenizer.yaml"
        return f"{text}: a recipe sets it, and a preset the data and sizes ({files})"
    if any("presets" in argument for argument in arguments):
        return f"{text}: add --{'.'.join(keys)}"
    presets = ", ".join(sorted(path.name for path in (REPOSITORY / "configs" / "presets").iterdir()))
    return f"{text}; a preset sets data and sizes, and none is given (--config configs/presets/…: {presets})"


def where(error: SettingError, arguments: list[str]) -> str:
    """The key and place that gave a setting its wrong value, on a line of its own; "" if several keys may have."""
    named = [place for place in read_places(arguments) if place[0][-1] == error.name]
    equal = [place for place in named if _number(place[1]) == _number(error.value) is not None]
    places = equal or (named if len({place[0] for place in named}) == 1 else [])
    return f"\n  {'.'.join(places[-1][0])}, {places[-1][2]}" if places else ""


def while_restoring(error: BaseException) -> bool:
    """True if an error was raised while Lightning restored a checkpoint, by it or by what it called."""
    frames = (frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(code.co_filename.endswith("checkpoint_connector.py") and "restore" in code.co_name for code in frames)


def nearest_class(class_path: str) -> str | None:
    """The existing class most like a path that does not exist; each part of it may be misspelt."""
    found = ""
    for part in class_path.split("."):
        names = ["lightning", "torch", *(path.parent.name for path in REPOSITORY.glob("*/__init__.py"))]
        if found:
            module = importlib.import_module(found)
            names = [submodule.name for submodule in pkgutil.iter_modules(getattr(module, "__path__", []))]
            names += [name for name, member in vars(module).items() if inspect.isclass(member)]
        match = part if part in names else nearest(part, names)
        if match is None:
            return None
        found = f"{found}.{match}".lstrip(".")
    return found


def _number(value: object) -> str | None:
    """A number or its text as Python writes floats, so that NaN equals NaN; None for anything else."""
    try:
        return repr(float(str(value).removeprefix(".") if str(value) in (".nan", ".inf") else str(value)))
    except ValueError:
        return None


def _options(class_path: str) -> list[str]:
    """The arguments of a class, with dots those of a class within it."""
    module, _, name = class_path.rpartition(".")
    component = getattr(importlib.import_module(module), name)
    added = ArgumentParser(exit_on_error=False).add_class_arguments(component, "options", fail_untyped=False)
    return [key.removeprefix("options.") for key in added]


def _unknown(option: list[str], names: list[str]) -> tuple[tuple[str, ...], str | None]:
    """An option up to its first part that no name has, and the name most like that part."""
    for depth, part in enumerate(option):
        ways = [name.split(".") for name in names]
        level = sorted({way[depth] for way in ways if way[:depth] == option[:depth] != way})
        if part not in level:
            return tuple(option[: depth + 1]), nearest(part, level)
    return tuple(option), None


def _meant(message: str) -> tuple[list[str], tuple[str, ...], str]:
    """The texts below most keys and classes of jsonargparse's tree, those keys, and the last class."""
    above: list[tuple[int, re.Match]] = []
    texts: dict[tuple[re.Match, ...], list[str]] = {}
    for line in message.splitlines():
        text, indent = line.strip().removeprefix("- "), len(line) - len(line.lstrip())
        if not text or text.startswith(NOISE):
            continue
        above = [(level, head) for level, head in above if level < indent]
        if head := BRANCH.match(text):
            above.append((indent, head))
            text = text[head.end() :].strip()
        if text:
            texts.setdefault(tuple(head for _, head in above), []).append(text)
    heads = max(texts, key=len)
    keys = tuple(part for head in heads if head[1] for part in head[1].split("."))
    return texts[heads], keys, ([head[2] for head in heads if head[2]] or [""])[-1]
