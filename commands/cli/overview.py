"""The classes that options name, with a line each, for the end of `fit --help`."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from textwrap import shorten

WIDTH = 120  # characters of a line
CLASSES = {  # option, the package of its classes, and their base
    "--model": ("lightning_modules", "lightning.pytorch.LightningModule"),
    "--model.tokenizer": ("polytoken.tokenizers", "polytoken.tokenizers.Tokenizer"),
    "--model.tokenizer.quantizer": ("polytoken.quantizers", "polytoken.quantizers.Quantizer"),
    "--model.objective.NAME": ("polytoken.losses", "polytoken.losses.LossTerm"),
    "--model.generator": ("polytoken.generators", "polytoken.generators.Generator"),
    "--model.generator.head": ("polytoken.generators.heads", "polytoken.generators.heads.Head"),
    "--data": ("datamodules", "lightning.pytorch.LightningDataModule"),
    "--data.source": ("datamodules.sources", "datamodules.sources.ImageSource"),
    "--trainer.callbacks+": ("callbacks", "lightning.pytorch.Callback"),
}


def overview() -> str:
    """All classes of this project that an option takes, below the option."""
    lines = ["classes of this project (--model.help TokenizerModule prints the options of one):"]
    for option in CLASSES:
        found = dict(_classes(option))
        width = max(map(len, found))
        lines += ["", f"  {option}"]
        room = WIDTH - width - 6
        lines += [f"    {name:<{width}}  {shorten(text, room, placeholder=' …')}" for name, text in found.items()]
    return "\n".join(lines) + "\n"


def names() -> list[str]:
    """Names of all these classes."""
    return [name for option in CLASSES for name, _ in _classes(option)]


def _classes(option: str) -> Iterator[tuple[str, str]]:
    """Names of an option's classes that can be built, with the first lines of their docstrings."""
    package, base = CLASSES[option]
    place, _, name = base.rpartition(".")
    module, parent = importlib.import_module(package), getattr(importlib.import_module(place), name)
    for public in module.__all__:
        found = getattr(module, public)
        concrete = inspect.isclass(found) and not inspect.isabstract(found)
        if concrete and issubclass(found, parent) and found is not parent:
            yield public, (found.__doc__ or "").splitlines()[0]
