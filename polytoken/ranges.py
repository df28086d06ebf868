"""Ranges and choices of settings, checked where an object is built."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from numbers import Real

from polytoken.errors import SettingError

Value = float | Sequence[float] | None
MOST_CODES = 2**24  # codes; 64 times the largest of the papers
LARGEST_SEED = 2**63 - 1


def at_least(minimum: float, owner: object, **values: Value) -> None:
    """Raise SettingError unless these values are finite and not below `minimum`; see :func:`within`."""
    require(owner, values, lambda value: minimum <= value < math.inf, f"at least {minimum:,}")


def above(minimum: float, owner: object, **values: Value) -> None:
    """Raise SettingError unless these values are finite and above `minimum`; see :func:`within`."""
    require(owner, values, lambda value: minimum < value < math.inf, f"above {minimum:,}, and finite")


def within(minimum: float, maximum: float, owner: object, **values: Value) -> None:
    """Raise SettingError unless these values lie in [minimum, maximum].

    Args:
        minimum: smallest value.
        maximum: largest value.
        owner: object whose class stands before the name in the message, or that word itself.
        values: by name; None passes, a sequence must not be empty, and each of its values is checked.
    """
    require(owner, values, lambda value: minimum <= value <= maximum, f"from {minimum:,} to {maximum:,}")


def below_one(owner: object, **values: Value) -> None:
    """Raise SettingError unless these values lie in [0, 1); see :func:`within`."""
    require(owner, values, lambda value: 0 <= value < 1, "from 0 to below 1")


def one_of(owner: object, choices: Collection[object], **values: object) -> None:
    """Raise SettingError unless these values are among the choices; None passes only as one of them.

    Args:
        owner: see :func:`within`.
        choices: such as `get_args` of a Literal.
        values: by name.
    """
    *others, last = ("null" if choice is None else str(choice) for choice in choices)
    allowed = f"{', '.join(others)} or {last}" if others else last
    for name, given in values.items():
        if given not in choices:
            raise SettingError(name, given, f"{_place(owner)}: {name} is {given!r}; it must be {allowed}")


def require(owner: object, values: Mapping[str, Value], holds: Callable[[float], bool], allowed: str) -> None:
    """Raise SettingError unless these values are numbers that hold; for what the functions above do not state.

    Args:
        owner: see :func:`within`.
        values: by name, see there.
        holds: true of an allowed value.
        allowed: what completes "it must be".
    """
    for name, given in values.items():
        if given is None:
            continue
        found = given if isinstance(given, Sequence) and not isinstance(given, str) else [given]
        if not found:
            raise SettingError(name, given, f"{_place(owner)}: {name} is empty; it needs at least one value")
        wrong = [value for value in found if not isinstance(value, Real) or not holds(value)]  # NaN does not hold
        if wrong:
            verb, kind = "holds" if found is given else "is", "" if isinstance(wrong[0], Real) else "a number, "
            message = f"{_place(owner)}: {name} {verb} {wrong[0]!r}; it must be {kind}{allowed}"
            raise SettingError(name, given, message)


def _place(owner: object) -> str:
    return owner if isinstance(owner, str) else type(owner).__name__
