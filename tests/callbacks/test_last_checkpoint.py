from pathlib import Path
from types import SimpleNamespace

import pytest

from callbacks.last_checkpoint import LastCheckpoint


class FakeTrainer(SimpleNamespace):
    is_global_zero = True

    def save_checkpoint(self, path: Path, weights_only: bool) -> None:
        assert not weights_only, "a checkpoint to go on from has the optimizers in it"
        path.write_text(str(self.global_step))
        self.saved.append(self.global_step)
        if self.breaks:
            raise OSError("disk full")


def train(
    place: Path, every: int, steps: list[int], max_steps: int = -1, start: int = 0, fast_dev_run: int = 0, breaks=False
) -> list[int]:
    callback = LastCheckpoint(every, dirpath=str(place))
    trainer = FakeTrainer(global_step=start, max_steps=max_steps, saved=[], fast_dev_run=fast_dev_run, breaks=breaks)
    callback.on_train_start(trainer, None)
    for step in steps:
        trainer.global_step = step
        callback.on_train_batch_end(trainer, None, None, None, 0)
    callback.on_train_end(trainer, None)
    return trainer.saved


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
def test_when_it_saves(expected: list[int], arguments: dict, tmp_path: Path) -> None:
    assert train(tmp_path, **arguments) == expected
    assert [path.name for path in tmp_path.iterdir()] == (["last.ckpt"] if expected else [])


def test_a_write_that_fails_leaves_the_last_checkpoint_whole(tmp_path: Path) -> None:
    train(tmp_path, every=2, steps=[2])
    with pytest.raises(OSError, match="disk full"):
        train(tmp_path, every=2, steps=[4], breaks=True)
    assert (tmp_path / "last.ckpt").read_text() == "2"


def test_never_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        LastCheckpoint(0)
