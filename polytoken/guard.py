"""Guard that rejects training steps with non-finite losses or gradients."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from polytoken.distributed import several_ranks
from polytoken.errors import RunError

logger = logging.getLogger(__name__)


class NonFiniteError(RunError):
    """Raised after too many consecutive steps with a non-finite loss or gradient."""


class NonFiniteGuard:
    """Checks the values of a training step, and counts consecutive steps that are not finite.

    Call :meth:`accept` once a step, before any weight changes, and :meth:`reset` after an update.

    Args:
        max_in_a_row: consecutive non-finite steps tolerated before :class:`NonFiniteError`.
    """

    def __init__(self, max_in_a_row: int) -> None:
        self.max_in_a_row = max_in_a_row
        self.in_a_row = 0

    def accept(self, *stages: Mapping[str, Tensor], step: int) -> bool:
        """Return True if all values are finite on all ranks; otherwise log step, names and ranks, and return False.

        Reads one number from the device. Under several ranks, every rank must call it with the same names, and a value
        of one rank rejects the step on all.

        Args:
            stages: values by name, causes before their consequences. Only the first stage with a non-finite value is
                named: a NaN loss, for example, always has NaN gradients.
            step: number of the step in messages.

        Raises:
            NonFiniteError: more than ``max_in_a_row`` consecutive steps were rejected.
        """
        finite = torch.stack([value.detach().isfinite().all() for stage in stages for value in stage.values()])
        bad = (~finite).float()
        if several_ranks():
            dist.all_reduce(bad)
        if not bool(bad.any()):
            return True
        self.in_a_row += 1
        self._report(_names(stages, finite.tolist(), bad.tolist()), step)
        return False

    def reset(self) -> None:
        """End the row of rejected steps: an update was applied."""
        self.in_a_row = 0

    def _report(self, names: str, step: int) -> None:
        message = f"step {step}: {names} not finite, so this step was left out"
        if not several_ranks() or dist.get_rank() == 0:
            logger.warning("%s (%d in a row, %d allowed)", message, self.in_a_row, self.max_in_a_row)
        if self.in_a_row > self.max_in_a_row:
            raise NonFiniteError(
                f"{message}; {self.in_a_row} in a row is more than max_nonfinite_steps={self.max_in_a_row}. "
                "Checkpoints with a finite loss stay. With a lower learning rate, start under another run.stage"
            )


def _names(stages: tuple[Mapping[str, Tensor], ...], finite: list[bool], bad: list[float]) -> str:
    """Names of the non-finite values of the first stage that has one on any rank, with their ranks if several."""
    start = 0
    for stage in stages:
        end = start + len(stage)
        if any(bad[start:end]):
            mine = ", ".join(name for name, is_finite in zip(stage, finite[start:end], strict=True) if not is_finite)
            return _of_ranks(mine) if several_ranks() else mine
        start = end
    raise AssertionError("called with finite values only")


def _of_ranks(names: str) -> str:
    """Names of all ranks; every rank must call it."""
    gathered: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(gathered, names)
    return "; ".join(f"{names} on rank {rank}" for rank, names in enumerate(gathered) if names)
