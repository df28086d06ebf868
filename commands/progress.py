"""Progress of the programs: a bar in a terminal, a line a minute in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from polytoken.text import duration

T = TypeVar("T")

EVERY_SECONDS = 60.0


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield the items, and show how many are done and how long the rest takes.

    Args:
        items: what the program works on.
        description: what they are: `validation images, batches`.
        total: their number; by default their length, if they have one.
    """
    if total is None and hasattr(items, "__len__"):
        total = len(items)
    if sys.stdout.isatty():
        from rich.progress import track as bar

        yield from bar(items, description, total, transient=True)
        return
    start = printed = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - printed >= EVERY_SECONDS:
            printed = now
            left = f"/{total} · ETA {duration((total - done) * (now - start) / done)}" if total else ""
            print(f"{description}: {done}{left}", flush=True)
