import logging

import pytest
import torch

from polytoken.guard import NonFiniteError, NonFiniteGuard
from tests.support.host_sync import host_syncs

GOOD, BAD = torch.ones(2), torch.tensor([1.0, float("inf")])


def test_the_first_stage_is_named_and_failures_in_a_row_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    guard = NonFiniteGuard(2)
    with caplog.at_level(logging.WARNING):
        assert guard.accept({"output": GOOD}, {}, {"loss": GOOD}, step=0)
        assert not guard.accept({"output": GOOD}, {"one": BAD, "two": GOOD, "three": BAD}, {"gradient": BAD}, step=7)
    assert caplog.messages == ["step 7: one, three not finite, so this step was left out (1 in a row, 2 allowed)"]
    guard.reset()
    for _ in range(2):
        assert not guard.accept({"loss": BAD}, step=8)
    with pytest.raises(NonFiniteError, match="step 8: loss not finite.*3 in a row is more than max_nonfinite_steps=2"):
        guard.accept({"loss": BAD}, step=8)


def test_a_finite_step_costs_one_read() -> None:
    with host_syncs() as counts:
        NonFiniteGuard(0).accept({"output": GOOD}, {"loss": GOOD, "other": GOOD}, step=0)
    assert counts.total() == 1
