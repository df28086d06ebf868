"""Actions of rank zero whose result, or refusal, all ranks share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import lightning.pytorch as pl

from polytoken.errors import RunError, UserError

T = TypeVar("T")


def of_rank_zero(trainer: pl.Trainer, action: Callable[[], T]) -> T:
    """Run an action on rank zero, and return its result on all ranks; every rank must call it.

    Raises:
        UserError, RunError: raised by the action; on all ranks, since the others would wait for rank zero forever.
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
