import os
from pathlib import Path

import pytest
import torch
from torch import nn

from polytoken.errors import UserError
from polytoken.weights import load_state, rebuild, save_state
from tests.support.precision import caller_in_bfloat16


def test_round_trip(tmp_path: Path) -> None:
    layer = nn.Linear(3, 2)
    save_state(tmp_path / "layer.safetensors", layer, {"accuracy": 0.5, "widths": [1, 2]})
    state, metadata = load_state(tmp_path / "layer.safetensors", "")
    assert torch.equal(state["weight"], layer.weight)
    assert metadata == {"accuracy": 0.5, "widths": [1, 2]}
    assert [path.name for path in tmp_path.iterdir()] == ["layer.safetensors"]


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere.safetensors: run `make weights`"):
        load_state(tmp_path / "nowhere.safetensors", "run `make weights`")


@pytest.mark.parametrize("name", ["cut.safetensors", "cut.pth"])
def test_a_truncated_file_is_reported(tmp_path: Path, name: str) -> None:
    layer, path = nn.Linear(64, 64), tmp_path / name
    if name.endswith("pth"):
        torch.save(layer.state_dict(), path)
    else:
        save_state(path, layer, {})
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ValueError, match=f"{name} is not a readable weights file.*: fetch it again"):
        load_state(path, "fetch it again")


class Malice:
    def __reduce__(self):
        return os.mkdir, ("owned",)


def test_a_pickle_that_runs_code_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": Malice()}, tmp_path / "malice.pth")
    with pytest.raises(ValueError, match="not a readable weights file"):
        load_state(tmp_path / "malice.pth", "fetch it again")
    assert not (tmp_path / "owned").exists()


def test_equal_weights_are_equal_files(tmp_path: Path) -> None:
    """A judge that is written again keeps the digest that references name."""
    layer, metadata = torch.nn.Linear(2, 3), {"é": 'a "quoted" ü', **{f"key_{number}": [number] for number in range(8)}}
    for _ in range(3):
        save_state(tmp_path / "layer.safetensors", layer, metadata)
        written = (tmp_path / "layer.safetensors").read_bytes()
        save_state(tmp_path / "again.safetensors", layer, metadata)
        assert (tmp_path / "again.safetensors").read_bytes() == written
    assert load_state(tmp_path / "layer.safetensors", "")[1] == metadata


def test_a_rebuilt_network_is_frozen_and_draws_nothing() -> None:
    state, before = nn.Linear(2, 3).state_dict(), torch.random.get_rng_state()
    with caller_in_bfloat16():
        network = rebuild(lambda: nn.Linear(2, 3), state, "layer.safetensors", "train it")
    assert not network.weight.is_inference()
    assert torch.equal(torch.random.get_rng_state(), before) and torch.equal(network.weight, state["weight"])
    assert not network.training and not any(parameter.requires_grad for parameter in network.parameters())
    with pytest.raises(UserError, match="^layer.safetensors does not hold the network .* describes: train it$"):
        rebuild(lambda: nn.Linear(2, 4), state, "layer.safetensors", "train it")


def test_the_umask_decides_who_may_read(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    save_state(tmp_path / "layer.safetensors", torch.nn.Linear(2, 3), {})
    assert (tmp_path / "layer.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode
