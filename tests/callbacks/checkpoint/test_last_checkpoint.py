import math
from pathlib import Path
from traceback import StackSummary
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from torch.distributed.checkpoint.api import CheckpointException

from callbacks.checkpoint import last_checkpoint
from callbacks.checkpoint.last_checkpoint import CLOCK_STEPS, LastCheckpoint
from polytoken.errors import UserError


class FakeTrainer(SimpleNamespace):
    is_global_zero = True
    world_size = 1
    sanity_checking = False
    ckpt_path = None
    _val_check_time_interval = None
    accumulate_grad_batches = 1
    val_check_batch = None
    enable_validation = True
    check_val_every_n_epoch = None
    state = SimpleNamespace(fn="fit")
    lightning_module = torch.nn.Linear(1, 1)
    strategy = SimpleNamespace(reduce_boolean_decision=bool)

    @property
    def fit_loop(self) -> SimpleNamespace:
        loop = SimpleNamespace(_should_check_val_fx=lambda fetcher: self.global_step in self.validations)
        return SimpleNamespace(epoch_loop=loop, _data_fetcher=None)

    def save_checkpoint(self, path: Path, weights_only: bool) -> None:
        assert not weights_only, "a checkpoint to resume from contains the optimizers"
        torch.save(self.global_step, path)
        self.saved.append(self.global_step)
        if self.breaks:
            raise OSError("disk full")


def train(
    place: Path,
    every: int,
    steps: list[int],
    max_steps: int = -1,
    start: int = 0,
    fast_dev_run: int = 0,
    breaks: bool = False,
    values: dict[int, float] | None = None,  # metric of the validation after each step
    resumes: bool = False,
    **options,
) -> list[int]:
    callback = LastCheckpoint(every, dirpath=str(place), **options)
    trainer = FakeTrainer(
        global_step=start,
        max_steps=max_steps,
        saved=[],
        fast_dev_run=fast_dev_run,
        breaks=breaks,
        validations=values or {},
        ckpt_path=str(place / "last.ckpt") if resumes else None,
    )
    callback.on_train_start(trainer, None)
    for step in steps:
        trainer.global_step = step
        callback.on_train_batch_end(trainer, None, None, None, 0)
        if step in trainer.validations:
            trainer.callback_metrics = dict.fromkeys(("val/x", "val/y"), torch.tensor(trainer.validations[step]))
            callback.on_validation_end(trainer, None)
    callback.on_train_end(trainer, None)
    return trainer.saved


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock in seconds that tests set."""
    clock = SimpleNamespace(now=1e6)
    monkeypatch.setattr(last_checkpoint, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def contents(place: Path) -> dict[str, str]:
    return {path.name: str(torch.load(path, weights_only=True)) for path in place.glob("*.ckpt")}


@pytest.mark.parametrize(
    "expected, arguments",
    [
        ([2, 4, 5], {"every": 2, "steps": [1, 2, 3, 4, 5], "max_steps": 5}),
        ([2, 3], {"every": 2, "steps": [1, 2, 3]}),  # stopped early
        ([2], {"every": 2, "steps": [0, 0, 1, 1, 2, 2]}),  # two batches an update: one write an update
        ([], {"every": 2, "steps": [], "start": 6, "max_steps": 6}),  # a finished run started again
        ([], {"every": 2, "steps": [1, 2], "fast_dev_run": 2}),
        ([2, 3], {"every": 3, "steps": [1, 2, 3], "values": {2: 1.0}}),  # before a validation
        ([3], {"every": 3, "steps": [1, 1, 2, 3], "values": {1: 1.0}, "start": 1}),  # it falls between two updates
    ],
)
def test_steps_at_which_it_saves(expected: list[int], arguments: dict, tmp_path: Path) -> None:
    assert train(tmp_path, **arguments) == expected
    names = {"last.ckpt"} if expected else set()
    names |= {"previous.ckpt"} if len(expected) > 1 else set()
    assert contents(tmp_path).keys() == names


def test_the_last_previous_and_best_checkpoint(tmp_path: Path) -> None:
    values = {2: 7.0, 4: math.nan, 5: 3.0, 7: 5.0}
    train(tmp_path, 100, list(range(1, 10)), values=values, monitor="val/x")
    assert contents(tmp_path) == {"last.ckpt": "9", "previous.ckpt": "7", "best.ckpt": "5"}


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"resumes": True}, "2"),
        ({"resumes": True, "monitor": "val/y"}, "5"),  # another metric
        ({}, "5"),  # the run starts over
    ],
)
def test_a_resumed_run_knows_its_best_value(settings: dict, kept: str, tmp_path: Path) -> None:
    """A file holds it: each checkpoint was written before its validation."""
    given = {"monitor": "val/x", "mode": "max"} | settings
    train(tmp_path, 100, [1, 2], values={1: 3.0, 2: 4.0}, monitor="val/x", mode="max")
    train(tmp_path, 100, [3, 4, 5], start=2, values={4: math.inf, 5: 3.5}, **given)
    assert contents(tmp_path)["best.ckpt"] == kept
    train(tmp_path, 100, [6], start=5, values={6: 4.5}, **given | {"resumes": True})
    assert contents(tmp_path)["best.ckpt"] == "6"


@pytest.mark.parametrize(
    ("fits", "step", "read", "best"),
    [
        (True, 2, None, "2"),
        (True, 2, "step_1.ckpt", "1"),  # other weights
        (True, 0, None, "1"),  # max_steps=0
        (False, 0, None, "1"),  # the command validate
    ],
)
def test_the_validation_after_a_fit_chooses_the_best_too(
    fits: bool, step: int, read: str | None, best: str, tmp_path: Path
) -> None:
    """That of a run which was left at its last step has no other."""
    train(tmp_path, 1, [1, 2], values={1: 3.0}, monitor="val/x")
    trainer = FakeTrainer(global_step=step, fast_dev_run=0, ckpt_path=str(tmp_path / "last.ckpt"))
    trainer.strategy = SimpleNamespace(broadcast=lambda path: path)
    trainer.callback_metrics = {"val/x": torch.tensor(2.0)} if fits else {}
    callback = LastCheckpoint(1, str(tmp_path), monitor="val/x")
    if fits:
        callback.setup(trainer, None, "fit")
        callback.on_fit_end(trainer, None)
    trainer.state, trainer.ckpt_path = SimpleNamespace(fn="validate"), read
    callback.setup(trainer, None, "validate")
    callback.on_validation_end(trainer, None)
    assert contents(tmp_path)["best.ckpt"] == best


def test_a_monitor_that_is_not_logged_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="monitor is 'val/z', which validation does not log; it logs val/x, val/y"):
        train(tmp_path, 1, [1], values={1: 0.0}, monitor="val/z")


def test_a_failed_write_leaves_the_last_checkpoint_whole(tmp_path: Path) -> None:
    train(tmp_path, every=2, steps=[2])
    with pytest.raises(OSError, match="disk full"):
        train(tmp_path, every=2, steps=[4], breaks=True)
    assert contents(tmp_path)["last.ckpt"] == "2"


def test_a_broken_checkpoint_does_not_replace_the_previous_one(tmp_path: Path) -> None:
    train(tmp_path, every=2, steps=[2, 4])
    (tmp_path / "last.ckpt").write_bytes(b"broken")  # so the command line resumes from previous.ckpt
    train(tmp_path, every=2, steps=[4], start=2)
    assert contents(tmp_path) == {"last.ckpt": "4", "previous.ckpt": "2"}


def test_a_sharded_checkpoint_that_cannot_be_written_raises_a_user_error(tmp_path: Path) -> None:
    def refuse(path: Path, weights_only: bool) -> None:
        path.mkdir()
        raise CheckpointException("write", {1: (OSError(28, "No space left on device"), StackSummary())})

    trainer = FakeTrainer(global_step=1, fast_dev_run=0, save_checkpoint=refuse)
    with pytest.raises(RuntimeError, match=r"next.ckpt cannot be written: rank 1: .*No space left.*make room"):
        LastCheckpoint(dirpath=str(tmp_path)).save(trainer)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(("minutes", "expected"), [(1.0, [2, 4, 6, 7]), (1.2, [3, 6, 7]), (None, [7])])
def test_a_slow_run_saves_by_time(
    minutes: float | None, expected: list[int], tmp_path: Path, clock: SimpleNamespace
) -> None:
    callback = LastCheckpoint(1000, str(tmp_path), minutes)
    trainer = FakeTrainer(global_step=0, max_steps=7, saved=[], fast_dev_run=0, breaks=False, validations={})
    callback.on_train_start(trainer, None)
    for step in range(1, 8):
        trainer.global_step = step
        clock.now += 30
        callback.on_train_batch_end(trainer, None, None, None, 0)
    assert trainer.saved == expected


def test_a_checkpoint_by_step_restarts_the_interval(tmp_path: Path, clock: SimpleNamespace) -> None:
    callback = LastCheckpoint(2, str(tmp_path), every_minutes=1)
    trainer = FakeTrainer(global_step=0, max_steps=9, saved=[], fast_dev_run=0, breaks=False, validations={})
    callback.on_train_start(trainer, None)
    for step in range(1, 6):
        trainer.global_step = step
        clock.now += 40
        callback.on_train_batch_end(trainer, None, None, None, 0)
    assert trainer.saved == [2, 4]


def test_several_ranks_save_at_the_same_step_by_the_clock_of_rank_zero(tmp_path: Path, clock: SimpleNamespace) -> None:
    told: list[bool] = []
    strategy = SimpleNamespace(
        reduce_boolean_decision=bool, broadcast=lambda own: told.append(own) or step >= 2 * CLOCK_STEPS
    )  # rank 0's answer
    callback = LastCheckpoint(1000, str(tmp_path), every_minutes=1)
    trainer = FakeTrainer(global_step=0, max_steps=999, saved=[], fast_dev_run=0, breaks=False, validations={})
    trainer.world_size, trainer.strategy = 2, strategy
    callback.on_train_start(trainer, None)
    for step in range(1, 3 * CLOCK_STEPS):
        trainer.global_step = step
        clock.now += 61  # this rank's clock alone would save after each step
        callback.on_train_batch_end(trainer, None, None, None, 0)
    assert trainer.saved == [2 * CLOCK_STEPS]
    assert told == [True, True]  # one broadcast in CLOCK_STEPS steps


@pytest.mark.parametrize("manual", [False, True])
def test_a_validation_that_leaves_the_updates_behind_has_its_checkpoint(tmp_path: Path, manual: bool) -> None:
    """An epoch of 10 batches ends with an update of 2, or a tokenizer leaves one out, so that others follow later."""
    held = []

    class Model(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.trained, self.automatic_optimization = torch.nn.Linear(1, 1), 0, not manual
            if manual:
                self.accumulate_steps = 4

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1)

        def training_step(self, batch: torch.Tensor) -> torch.Tensor:
            self.trained += 1
            loss = self.layer(batch).mean()
            if manual:
                self.manual_backward(loss)
                if self.trained % 4 == 1:
                    self.optimizers().step()
            return loss

        def validation_step(self, batch: torch.Tensor) -> None:
            held.append((self.trained, callback.holds(self.trainer.global_step)))

    callback = LastCheckpoint(1000, str(tmp_path), every_minutes=None)
    off = dict.fromkeys(("enable_progress_bar", "enable_model_summary", "logger"), False)
    batches = {} if manual else {"accumulate_grad_batches": 4}
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=8, max_epochs=-1, val_check_interval=8, check_val_every_n_epoch=None,
        num_sanity_val_steps=0, default_root_dir=tmp_path, callbacks=[callback], **off, **batches,
    )  # fmt: skip
    trainer.fit(Model(), *(torch.utils.data.DataLoader(torch.zeros(rows, 1)) for rows in (10, 1)))
    assert held == [(8, True), (16, True), (24, True)]


def test_an_interval_of_zero_steps_is_rejected() -> None:
    with pytest.raises(UserError, match="every_n_train_steps is 0; it must be at least 1"):
        LastCheckpoint(every_n_train_steps=0)
    with pytest.raises(UserError, match="every_minutes is 0; it must be above 0"):
        LastCheckpoint(every_minutes=0)
