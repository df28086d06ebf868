"""What a misspelt name was probably meant to be."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

from jsonargparse import ArgumentParser

from artifacts.repository import REPOSITORY


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The name most like this one, or None if none is like it."""
    matches = get_close_matches(name, list(names), n=1)
    return matches[0] if matches else None


def options_of(class_path: str) -> list[str]:
    """The arguments a class takes in its `init_args`, with dots those of a class within it."""
    module, _, name = class_path.rpartition(".")
    component = getattr(importlib.import_module(module), name)
    added = ArgumentParser(exit_on_error=False).add_class_arguments(component, "options", fail_untyped=False)
    return sorted(key.removeprefix("options.") for key in added)


def nearest_class(class_path: str) -> str | None:
    """The existing class or function most like a path that does not exist, its package misspelt or its own name."""
    parts = class_path.split(".")
    for depth in range(len(parts)):
        if _names(parts[:depth]) and parts[depth] not in _names(parts[:depth]):
            match = nearest(parts[depth], _names(parts[:depth]))
            if match is None:
                return None
            parts[depth] = match
    return ".".join(parts) if parts != class_path.split(".") else None


def nearest_file(path: str) -> str | None:
    """The file in the same directory whose name is most like this one."""
    directory = Path(path).parent
    names = [file.name for file in directory.iterdir()] if directory.is_dir() else []
    match = nearest(Path(path).name, names)
    return str(directory / match) if match else None


def _names(parents: list[str]) -> list[str]:
    """What can be named below a package or module: the repository's packages, its submodules, its classes."""
    if not parents:
        packages = [path.name for path in REPOSITORY.iterdir() if path.is_dir() and any(path.glob("*.py"))]
        return [*packages, "lightning", "torch"]
    try:
        module = importlib.import_module(".".join(parents))
    except ImportError:
        return []
    submodules = [found.name for found in pkgutil.iter_modules(getattr(module, "__path__", []))]
    return [*submodules, *(name for name, member in vars(module).items() if inspect.isclass(member))]
