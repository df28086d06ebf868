"""Cases of a test that `make test` leaves to `make test-slow`."""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Any

import pytest


def slow_but(kept: Container[str], cases: Iterable[Any]) -> list[Any]:
    """The cases, all but some marked as slow; a tuple of values is known by its first."""
    return [case if _first(case) in kept else pytest.param(*_values(case), marks=pytest.mark.slow) for case in cases]


def _values(case: Any) -> tuple[Any, ...]:
    return case if isinstance(case, tuple) else (case,)


def _first(case: Any) -> str:
    return str(_values(case)[0])
