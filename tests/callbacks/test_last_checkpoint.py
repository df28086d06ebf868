from pathlib import Path
from types import SimpleNamespace

import pytest

from callbacks.last_checkpoint import LastCheckpoint


class FakeTrainer(SimpleNamespace):
    def save_checkpoint(self, path: str) -> None:
        self.saved.append((self.global_step, path))


def train(every: int, steps: list[int], max_steps: int = -1, start: int = 0, fast_dev_run: int = 0) -> list[int]:
    callback = LastCheckpoint(every, dirpath="place")
    trainer = FakeTrainer(global_step=start, max_steps=max_steps, saved=[], fast_dev_run=fast_dev_run)
    callback.on_train_start(trainer, None)
    for step in steps:
        trainer.global_step = step
        callback.on_train_batch_end(trainer, None, None, None, 0)
    callback.on_train_end(trainer, None)
    assert {path for _, path in trainer.saved} <= {str(Path("place/last.ckpt"))}
    return [step for step, _ in trainer.saved]


@pytest.mark.parametrize(
    "expected, arguments",
    [
        ([2, 4, 5], {"every": 2, "steps": [1, 2, 3, 4, 5], "max_steps": 5}),
        ([2, 3], {"every": 2, "steps": [1, 2, 3]}),  # stopped early
        ([2], {"every": 2, "steps": [0, 0, 1, 1, 2, 2]}),  # two batches an update: one write an update
        ([], {"every": 2, "steps": [], "start": 6, "max_steps": 6}),  # a finished run started again
        ([], {"every": 2, "steps": [1, 2], "fast_dev_run": 2}),
    ],
)
def test_when_it_saves(expected: list[int], arguments: dict) -> None:
    assert train(**arguments) == expected


def test_never_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        LastCheckpoint(0)
