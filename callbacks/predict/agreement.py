"""What rank zero finds on disk, for all ranks: one reader, and a refusal that every rank raises."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import lightning.pytorch as pl

from polytoken.errors import RunError, UserError

T = TypeVar("T")


def of_rank_zero(trainer: pl.Trainer, action: Callable[[], T]) -> T:
    """Result of an action of rank zero, on all ranks; every rank must call it.

    Raises:
        UserError, RunError: of the action, on all ranks, since the others would wait for rank zero for ever.
    """
    found: T | UserError | RunError | None = None
    if trainer.is_global_zero:
        try:
            found = action()
        except (UserError, RunError) as error:
            found = error
    found = trainer.strategy.broadcast(found)
    if isinstance(found, UserError | RunError):
        raise found
    return found  # type: ignore[return-value]
