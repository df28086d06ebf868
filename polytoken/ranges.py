"""Ranges of numeric settings, checked where an object is built."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from polytoken.errors import SettingError

Value = float | Sequence[float] | None
MOST_CODES = 2**24  # codes; 64 times the largest of the papers
LARGEST_SEED = 2**63 - 1


def at_least(minimum: float, owner: object, **values: Value) -> None:
    """Raise SettingError unless these values are finite and not below `minimum`; see :func:`within`."""
    _check(owner, values, lambda value: minimum <= value < math.inf, f"at least {minimum:,}")


def above(minimum: float, owner: object, **values: Value) -> None:
    """Raise SettingError unless these values are finite and above `minimum`; see :func:`within`."""
    _check(owner, values, lambda value: minimum < value < math.inf, f"above {minimum:,}, and finite")


def within(minimum: float, maximum: float, owner: object, **values: Value) -> None:
    """Raise SettingError unless these values lie in [minimum, maximum].

    Args:
        minimum: smallest value.
        maximum: largest value.
        owner: object whose class stands before the name in the message, or that word itself.
        values: by name; None passes, a sequence must not be empty, and each of its values is checked.
    """
    _check(owner, values, lambda value: minimum <= value <= maximum, f"from {minimum:,} to {maximum:,}")


def below_one(owner: object, **values: Value) -> None:
    """Raise SettingError unless these values lie in [0, 1); see :func:`within`."""
    _check(owner, values, lambda value: 0 <= value < 1, "from 0 to below 1")


def _check(owner: object, values: dict[str, Value], holds: Callable[[float], bool], allowed: str) -> None:
    place = owner if isinstance(owner, str) else type(owner).__name__
    for name, given in values.items():
        found = [] if given is None else [*given] if isinstance(given, Sequence) else [given]
        if given is not None and not found:
            raise SettingError(name, given, f"{place}: {name} is empty; it needs at least one value")
        if wrong := [value for value in found if not holds(value)]:  # NaN does not hold either
            of = f" holds {wrong[0]}" if isinstance(given, Sequence) else f" is {wrong[0]}"
            raise SettingError(name, given, f"{place}: {name}{of}; it must be {allowed}")
