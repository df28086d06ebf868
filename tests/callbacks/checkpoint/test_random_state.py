import io
import random
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch import seed_everything

from callbacks.checkpoint import random_state
from callbacks.checkpoint.random_state import RandomState
from polytoken.loading import RANDOM_STATE

MODULE = SimpleNamespace(device=torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def trainer_of(world_size: int = 1, rank: int = 0, command: str = "fit") -> SimpleNamespace:
    return SimpleNamespace(world_size=world_size, global_rank=rank, state=SimpleNamespace(fn=command))


TRAINER = trainer_of()


def draws() -> list[float]:
    numbers = [torch.rand(()).item(), np.random.rand(), np.random.randn(), random.random(), random.gauss(0, 1)]
    return [*numbers, torch.rand((), device=MODULE.device).item()]


def step(callback: RandomState) -> list[float]:
    callback.on_train_batch_start(TRAINER, MODULE, None, 0)
    numbers = draws()
    callback.on_train_batch_end(TRAINER, MODULE, None, None, 0)
    return numbers


def through_a_file(callback: RandomState, trainer: SimpleNamespace = TRAINER) -> dict:
    checkpoint: dict = {}
    callback.on_save_checkpoint(trainer, MODULE, checkpoint)
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def test_a_resumed_run_draws_the_same_numbers() -> None:
    first = RandomState()
    first.on_fit_start(TRAINER, MODULE)
    step(first)
    checkpoint = through_a_file(first)
    expected = [step(first), step(first)]

    torch.manual_seed(99)
    random.seed(99)
    np.random.seed(99)
    second = RandomState()
    second.on_load_checkpoint(TRAINER, MODULE, checkpoint)
    second.on_fit_start(TRAINER, MODULE)
    assert [step(second), step(second)] == expected


def test_draws_between_two_steps_change_nothing() -> None:
    torch.manual_seed(0)
    quiet = RandomState()
    quiet.on_fit_start(TRAINER, MODULE)
    checkpoint = through_a_file(quiet)
    expected = [step(quiet), step(quiet)]

    busy = RandomState()
    busy.on_load_checkpoint(TRAINER, MODULE, checkpoint)
    first = step(busy)
    draws()  # a validation
    assert [first, step(busy)] == expected


def test_a_repeated_validation_draws_the_same_numbers() -> None:
    first, second = RandomState(), RandomState()
    first.on_fit_start(TRAINER, MODULE)
    step(first)
    drawn = []
    for callback in (first, first, second):  # in the fit, after it, and in a run that resumes after the last step
        second.on_load_checkpoint(TRAINER, MODULE, through_a_file(first))
        callback.on_validation_start(TRAINER, MODULE)
        drawn.append(draws())
    assert drawn[0] == drawn[1] == drawn[2]


def test_each_rank_gets_its_own_state(monkeypatch: pytest.MonkeyPatch) -> None:
    def gather(states: list, own: dict) -> None:
        states[:] = [other, own]

    other, callback = random_state.take_states(MODULE.device), RandomState()
    torch.rand(5)
    callback.on_fit_start(TRAINER, MODULE)
    monkeypatch.setattr(random_state.dist, "all_gather_object", gather)
    checkpoint = through_a_file(callback, trainer_of(2, 1))
    assert len(checkpoint[RANDOM_STATE]) == 2
    expected = step(callback)
    again = RandomState()
    again.on_load_checkpoint(trainer_of(2, 1), MODULE, checkpoint)
    assert step(again) == expected
    again.on_load_checkpoint(trainer_of(2, 0), MODULE, checkpoint)
    assert step(again) != expected


def test_ranks_with_one_seed_draw_different_numbers() -> None:
    """Otherwise all ranks would drop the same labels and add the same noise."""

    def first_step(rank: int, seed: int) -> list[float]:
        seed_everything(seed, verbose=False)
        callback = RandomState()
        callback.on_fit_start(trainer_of(3, rank), MODULE)
        return step(callback)

    drawn = [first_step(rank, seed) for rank, seed in ((0, 5), (1, 5), (2, 5), (1, 6))]
    for numbers in zip(*drawn, strict=True):  # of each generator
        assert len(set(numbers)) == 4
    assert first_step(1, 5) == drawn[1]
    seed_everything(5, verbose=False)
    assert draws() == drawn[0], "one rank equals a run without ranks"


def test_a_different_number_of_ranks_warns() -> None:
    callback = RandomState()
    callback.on_fit_start(TRAINER, MODULE)
    checkpoint = through_a_file(callback)
    with pytest.warns(UserWarning, match=r"states of 1 rank\(s\) and this run has 4"):
        callback.on_load_checkpoint(trainer_of(4, 0), MODULE, checkpoint)
    with warnings.catch_warnings(action="error"):  # nothing continues
        callback.on_load_checkpoint(trainer_of(4, 0, "validate"), MODULE, checkpoint)


def test_a_checkpoint_without_states_is_accepted() -> None:
    RandomState().on_load_checkpoint(TRAINER, MODULE, {})
