"""Objects rebuilt from the class paths that a checkpoint records."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar, get_args, get_type_hints

import msgspec

from polytoken.errors import MissingPackageError, UserError, first_line

LIBRARY = "polytoken"
CLASS_PATH = "class_path"

T = TypeVar("T")


def build(section: Any, base: type[T], where: str, trust: Sequence[str] = ()) -> T:
    """Instantiate ``{class_path, init_args}`` and the sections nested in its arguments.

    A file may come from an unknown source, and importing a module runs its code. So classes are looked up in the
    package ``polytoken`` alone, before anything else is imported. jsonargparse would import any module.

    Args:
        section: plain data.
        base: the class must be one of its subclasses.
        where: the file, for messages.
        trust: further top-level packages to look up classes in.

    Raises:
        UserError: for a class of another package, arguments that the class does not take, or a package that it needs
            and that is not installed.
    """
    packages = (LIBRARY, *trust)
    _check_packages(section, where, packages)
    return _instantiate(section, (base,), where, packages)


def _check_packages(value: Any, where: str, packages: tuple[str, ...]) -> None:
    if isinstance(value, Mapping):
        path = value.get(CLASS_PATH, LIBRARY)
        if not isinstance(path, str) or path.split(".")[0] not in packages:
            raise UserError(
                f"{where} names the class {path}, and only classes of {' and '.join(packages)} are loaded from a file, "
                "since importing another module runs its code: if you know the file's origin, pass the module's "
                "package as trust"
            )
        for item in value.values():
            _check_packages(item, where, packages)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for item in value:
            _check_packages(item, where, packages)


def _instantiate(section: Any, bases: tuple[type, ...], where: str, packages: tuple[str, ...]) -> Any:
    names = " or ".join(base.__name__ for base in bases)
    if not isinstance(section, Mapping) or CLASS_PATH not in section:
        raise UserError(f"{where} does not say which class its {names} has")
    path, arguments = section[CLASS_PATH], section.get("init_args") or {}
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{where} names the class {path}, which this version of the code does not have") from error
    # a module also holds what it imports, such as pathlib.Path
    own = isinstance(found, type) and found.__module__.split(".")[0] in packages
    if not own or not issubclass(found, bases) or inspect.isabstract(found):
        raise UserError(f"{where} names {path}, which is not a {names}")
    constructor = f"the arguments of {path} recorded in {where} do not fit this version of the code"
    if not isinstance(arguments, Mapping):
        raise UserError(f"{constructor}: they are not a mapping")
    try:
        inspect.signature(found).bind(**arguments)
    except TypeError as error:
        raise UserError(f"{constructor}: {error}") from error
    try:
        hints = _hints(found)
    except NameError as error:
        raise UserError(f"{constructor}: {error}, so import it outside of `if TYPE_CHECKING`") from error
    values = {}
    for key, value in arguments.items():
        hint = hints.get(key, Any)
        try:
            values[key] = msgspec.convert(_nested(value, hint, where, packages), hint)
        except (msgspec.ValidationError, TypeError) as error:  # TypeError: a hint that msgspec does not support
            raise UserError(f"{constructor}: {key}: {error}") from error
    try:
        return found(**values)
    except ImportError as error:  # packages of the suite are imported where they are used
        extra = "suite" if path.startswith(f"{LIBRARY}.") else None
        raise MissingPackageError.of(f"{path}, which {where} names,", error, extra) from error
    except (MemoryError, OverflowError, RuntimeError, TypeError) as error:  # sizes beyond what torch can count or hold
        raise UserError(f"{constructor}: {first_line(error)}") from error


def _hints(found: type) -> dict[str, Any]:
    """Type hints of all arguments of a constructor, with those that ``**kwargs`` passes on to base classes."""
    hints: dict[str, Any] = {}
    for constructor in (vars(one)["__init__"] for one in found.__mro__ if "__init__" in vars(one)):
        parameters = inspect.signature(constructor).parameters
        hints = dict.fromkeys(parameters, Any) | get_type_hints(constructor) | hints
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            break
    return hints


def _nested(value: Any, hint: Any, where: str, packages: tuple[str, ...]) -> Any:
    """The value with its class sections replaced by objects."""
    if isinstance(value, Mapping):
        if CLASS_PATH in value:
            return _instantiate(value, tuple(_classes(hint)), where, packages)
        # a recipe writes the arguments of a class without subclasses alone
        for found in (one for one in _classes(hint) if getattr(one, "__final__", False)):
            path = f"{found.__module__}.{found.__qualname__}"
            return _instantiate({CLASS_PATH: path, "init_args": value}, (found,), where, packages)
        return {key: _nested(item, hint, where, packages) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_nested(item, hint, where, packages) for item in value]
    return value


def _classes(hint: Any) -> Iterator[type]:
    """All classes that a type hint mentions; that of Any, which is the hint of an argument without one, is object."""
    if isinstance(hint, type) and not get_args(hint):
        yield object if hint is Any else hint
    for part in get_args(hint):
        yield from _classes(part)
