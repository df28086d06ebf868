"""A tokenizer's run that starts from the weights of another one."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from artifacts.continuation import continue_from
from lightning_modules.tokenizer import TokenizerModule
from polytoken.errors import UserError
from polytoken.files import file_sha256
from polytoken.licence import ReleasedAs
from polytoken.loading import INIT_FROM, MODEL_CONFIG, Checkpoint
from tests.lightning_modules.test_tokenizer import build, fit
from tests.support.released import ADOBE


def saved(module: TokenizerModule, path: Path, average: dict[str, Tensor] | None = None, **more: dict) -> str:
    """A checkpoint of the module, with averages and further content where given."""
    callbacks = {"EMA": {"average": average}} if average else {}
    model = {"init_args": {"tokenizer": {}}}
    content = {"state_dict": module.state_dict(), "global_step": 7, "callbacks": callbacks, MODEL_CONFIG: model, **more}
    torch.save(content, path)
    return str(path)


def moved(module: TokenizerModule) -> TokenizerModule:
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(0.25)
    return module


def equal(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_weights_of_both_networks_are_carried(tmp_path: Path) -> None:
    source, target = moved(build()), build()
    path = saved(source, tmp_path / "last.ckpt")
    origin = continue_from(path, target.tokenizer, target.objective)
    assert origin == {"path": path, "sha256": file_sha256(path), "step": 7}
    assert equal(source.tokenizer, target.tokenizer) and equal(source.objective, target.objective)


def test_the_release_of_the_weights_is_carried_through_all_runs(tmp_path: Path) -> None:
    path = saved(moved(build()), tmp_path / "imported.ckpt", released=ADOBE)
    for again in ("second.ckpt", "third.ckpt"):
        target = build()
        origin = continue_from(path, target.tokenizer, target.objective)
        path = saved(target, tmp_path / again, init_from=origin)
        assert Checkpoint.open(path).released == ReleasedAs(**ADOBE)
    assert Checkpoint.open(saved(build(), tmp_path / "own.ckpt")).released is None


def test_averages_are_preferred_and_another_discriminator_is_fresh(tmp_path: Path) -> None:
    source, target = moved(build()), build()
    average = {f"tokenizer.{name}": value + 1 for name, value in source.tokenizer.state_dict().items()}
    discriminator = target.objective.adversarial.discriminator
    discriminator.register_buffer("more", torch.zeros(1))
    before = {name: value.clone() for name, value in discriminator.state_dict().items()}
    continue_from(saved(source, tmp_path / "last.ckpt", average), target.tokenizer, target.objective)
    assert torch.equal(target.tokenizer.last_layer, average["tokenizer.decoder.conv_out.weight"])
    assert all(torch.equal(value, before[name]) for name, value in discriminator.state_dict().items())


def test_other_or_broken_weights_change_nothing(tmp_path: Path) -> None:
    source, target = moved(build()), build()
    before = {name: value.clone() for name, value in target.state_dict().items()}
    with torch.no_grad():
        source.tokenizer.last_layer[0, 0, 0, 0] = float("nan")
    with pytest.raises(UserError, match=r"decoder.conv_out.weight is not finite: name an earlier checkpoint"):
        continue_from(saved(source, tmp_path / "nan.ckpt"), target.tokenizer, target.objective)
    source.tokenizer.decoder.conv_out = nn.Conv2d(8, 3, 1)
    with pytest.raises(UserError, match=r"decoder.conv_out.weight is 3 × 8 × 1 × 1 there and .* here; give both"):
        continue_from(saved(source, tmp_path / "other.ckpt"), target.tokenizer, target.objective)
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())


def test_a_run_records_where_it_started(tmp_path: Path) -> None:
    path = saved(moved(build()), tmp_path / "last.ckpt")
    module = build(init_from=path)
    fit(module, tmp_path, 1)
    checkpoint: dict = {}
    module.on_save_checkpoint(checkpoint)
    assert checkpoint[INIT_FROM]["sha256"] == file_sha256(path)
    resumed = build(init_from="gone")
    resumed.on_load_checkpoint(checkpoint)
    assert resumed.origin == checkpoint[INIT_FROM]
