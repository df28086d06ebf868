"""A checkpoint whose records are broken is one sentence, wherever Lightning or a callback stumbles over them."""

from pathlib import Path
from traceback import StackSummary
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch.distributed.checkpoint.api import CheckpointException

from callbacks import EMA, RandomState
from callbacks.checkpoint.random_state import put_states, take_states
from polytoken.errors import UserError
from tests.support.commands import TOY, exit_code

LAST = Path("runs/default/toy/checkpoints/last.ckpt")


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["cli.py"])
    assert exit_code("fit", "--config", TOY) == 0
    return torch.load(LAST, weights_only=True)


@pytest.mark.filterwarnings("ignore")
def test_broken_records(trained: dict[str, Any], capsys: pytest.CaptureFixture) -> None:
    broken = {"loops": {"fit_loop": 7}, "callbacks": "x", "optimizer_states": [1], "lr_schedulers": 7}
    for key, value in broken.items():
        torch.save({**trained, key: value}, LAST)
        code, said = exit_code("fit", "--config", TOY, "--trainer.max_steps", "8"), capsys.readouterr().err
        assert code == 2 and "cannot be restored, since its records are broken" in said, (key, said)


def test_a_broken_sharded_checkpoint(
    trained: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """torch raises no Exception, but a summary of the ranks' errors with their tracebacks."""

    def load(*_: object, **__: object) -> None:
        raise CheckpointException("read", {1: (RuntimeError("Missing key: optimizer.state.x\nmore"), StackSummary())})

    monkeypatch.setattr(SingleDeviceStrategy, "load_checkpoint", load)
    assert exit_code("fit", "--config", TOY, "--trainer.max_steps", "8") == 2
    said = capsys.readouterr().err
    assert "are broken (RuntimeError: Missing key: optimizer.state.x): name an earlier" in said


@pytest.mark.parametrize("change", [{"torch": 7}, {"python": (3, "x", None)}, {"numpy": 0}, {"torch": torch.zeros(3)}])
def test_broken_random_states(change: dict[str, Any]) -> None:
    states = take_states(torch.device("cpu"))
    with pytest.raises(UserError, match="the random states in the checkpoint are broken"):
        put_states({**states, **change}, torch.device("cpu"))
    put_states(states, torch.device("cpu"))
    with pytest.raises(UserError, match="is no list of states"):
        fitting = SimpleNamespace(state=SimpleNamespace(fn="fit"))
        RandomState().on_load_checkpoint(fitting, None, {"random_state": 7})  # type: ignore[arg-type]


@pytest.mark.parametrize("state", [{}, {"updates": "1", "average": {}}, {"updates": 1, "average": {"a": 7}}])
def test_broken_averages(state: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="the averages .* in the checkpoint are broken"):
        EMA().load_state_dict(state)
