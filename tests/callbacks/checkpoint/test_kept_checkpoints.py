import json
from pathlib import Path

import pytest
import torch

from callbacks import KeptCheckpoints
from polytoken.errors import UserError
from tests.support.commands import TOY, exit_code, go_to
from tests.support.slow import slow_but

FOLDER = Path("runs/default/toy/checkpoints")
ROOTS = (Path("runs"), Path("whole"))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_to(tmp_path, monkeypatch)


def fit(*arguments: str, every: int = 2, **interrupt: object) -> int:
    """Fit the toy, which saves at step 3 and 6 of its 6."""
    added = [{"class_path": "callbacks.KeptCheckpoints", "init_args": {"every_n_train_steps": every}}]
    if interrupt:
        added += [{"class_path": "tests.support.interrupt.KillAfter", "init_args": interrupt}]
    return exit_code("fit", "--config", TOY, "--trainer.callbacks+", json.dumps(added), *arguments)


def kept(folder: Path = FOLDER) -> dict[str, int]:
    paths = sorted(folder.glob("step_*.ckpt"))
    return {path.name: torch.load(path, weights_only=True)["global_step"] for path in paths}


def test_every_second_checkpoint_stays() -> None:
    assert fit() == 0
    assert kept() == {"step_2.ckpt": 2, "step_4.ckpt": 4, "step_6.ckpt": 6}
    assert fit() == 0  # a finished run that is started again
    assert len(kept()) == 3


@pytest.mark.parametrize("step", slow_but(("1",), (1, 2)))
def test_a_requeued_run_keeps_the_same_checkpoints(step: int) -> None:
    assert fit(step=step, name="SIGUSR1") == 75
    assert torch.load(FOLDER / "last.ckpt", weights_only=True)["global_step"] == step
    (FOLDER / "step_2.ckpt").unlink(missing_ok=True)  # as if it ended after it had saved and before it kept the file
    assert fit() == 0
    assert kept() == {"step_2.ckpt": 2, "step_4.ckpt": 4, "step_6.ckpt": 6}
    assert fit("--run.root", "whole") == 0
    for name in kept():
        resumed, whole = (torch.load(root / FOLDER.relative_to("runs") / name, weights_only=True) for root in ROOTS)
        for key, value in whole["state_dict"].items():
            assert torch.equal(resumed["state_dict"][key], value), (name, key)


def test_invalid_settings_are_rejected() -> None:
    with pytest.raises(UserError, match="every_n_train_steps is 0; it must be at least 1"):
        KeptCheckpoints(0)
