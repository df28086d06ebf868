from copy import deepcopy
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import nn

from polytoken.errors import UserError
from polytoken.optimization import OptimizerConfig


def test_parameter_groups_are_named_by_network_and_kind() -> None:
    network, carried = nn.Linear(2, 2), nn.Linear(2, 2)
    config = OptimizerConfig(learning_rate=1.0, weight_decay=0.1, schedule="cosine")
    optimizer = config.build(network.parameters(), carried.parameters(), 0.5, network="autoencoder")
    config.set_learning_rate(optimizer, 1, 2)
    found = {group["name"]: (group["lr"], group["weight_decay"]) for group in optimizer.param_groups}
    rate = config.learning_rate_at(1, 2)
    assert found == {
        "autoencoder/decayed": (rate, 0.1),
        "autoencoder/not_decayed": (rate, 0.0),
        "autoencoder/carried_decayed": (rate / 2, 0.1),
        "autoencoder/carried_not_decayed": (rate / 2, 0.0),
    }
    (group,) = OptimizerConfig().build(iter([nn.Parameter(torch.zeros(1))])).param_groups
    assert group["name"] == "all"


def test_weight_decay_of_all_tensors() -> None:
    network = nn.Linear(2, 2)
    (group,) = OptimizerConfig(weight_decay=0.1, decay="all").build(network.parameters()).param_groups
    assert group["name"] == "all" and group["weight_decay"] == 0.1 and len(group["params"]) == 2


def test_warmup_from_a_fraction_of_the_peak() -> None:
    """The released Ideal: from 1e-5 to 1e-4 in 20,016 updates, and back to 1e-5 at the end."""
    config = OptimizerConfig(1e-4, schedule="cosine", warmup_steps=20016, initial_fraction=0.1, final_fraction=0.1)
    rates = [config.learning_rate_at(step, 250200) for step in (0, 10008, 20015, 20016, 250200)]
    assert rates == pytest.approx([1.0e-5, 5.5e-5, 1.0e-4, 1.0e-4, 1.0e-5], rel=1e-3)
    assert OptimizerConfig(1.0, warmup_steps=4).learning_rate_at(0, 9) == 0.25


def test_a_cosine_without_an_end_is_refused_at_the_first_step() -> None:
    with pytest.raises(UserError, match="a cosine schedule ends at trainer.max_steps: set it"):
        OptimizerConfig(schedule="cosine", warmup_steps=2).learning_rate_at(0, -1)
    assert OptimizerConfig(1.0).learning_rate_at(0, -1) == 1.0


def test_a_schedule_from_a_later_step_is_that_of_a_shorter_run() -> None:
    """The released ImageFolder: its discriminator starts at step 70,000 of 250,000, with a warm-up of 5,000."""
    settings: dict[str, Any] = {"schedule": "cosine", "warmup_steps": 5000, "final_fraction": 0.0625}
    early, late = OptimizerConfig(8e-4, **settings), OptimizerConfig(8e-4, **settings, start_step=70000)
    for step in (0, 4999, 5000, 92500, 180000):
        assert late.learning_rate_at(70000 + step, 250000) == early.learning_rate_at(step, 180000)
    rates = [late.learning_rate_at(step, 250000) for step in (0, 69999, 70000, 75000, 162500, 250000)]
    assert rates == pytest.approx([1.6e-7, 1.6e-7, 1.6e-7, 8e-4, 4.25e-4, 5e-5])
    cosine = OptimizerConfig(1.0, schedule="cosine", start_step=6)
    assert [cosine.learning_rate_at(step, 4) for step in (0, 5)] == [1.0, 1.0], "a run that ends before it"


def test_decay_of_matrices_leaves_biases_and_norms() -> None:
    config = OptimizerConfig(weight_decay=0.05)
    network = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Conv2d(1, 1, 1))
    decayed, kept = config.build(network.parameters()).param_groups
    assert [parameter.ndim for parameter in decayed["params"]] == [2, 4] and decayed["weight_decay"] == 0.05
    assert [parameter.ndim for parameter in kept["params"]] == [1, 1, 1, 1] and kept["weight_decay"] == 0.0


@pytest.mark.parametrize("scaler", [None, torch.amp.GradScaler("cpu", init_scale=4.0)], ids=["bf16", "fp16"])
def test_lightning_clips_the_gradients_of_fused_updates(scaler: torch.amp.GradScaler | None) -> None:
    """In mixed precision too, where it refuses an optimizer that unscales fp16 gradients itself."""
    weight = nn.Parameter(torch.zeros(2))
    optimizer = OptimizerConfig(learning_rate=0.1).build([weight])
    (weight @ torch.tensor([3.0, 4.0]) * (scaler.scale(torch.ones(())) if scaler else 1)).backward()
    if scaler:
        scaler.unscale_(optimizer)  # as Lightning does before it clips, unless the optimizer says that it does
    MixedPrecision("bf16-mixed", "cpu").clip_gradients(optimizer, 1.0)
    torch.testing.assert_close(weight.grad, torch.tensor([0.6, 0.8]))
    scaler.step(optimizer) if scaler else optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.tensor([-0.1, -0.1]))


def test_fused_updates_equal_the_plain_ones_and_read_their_state() -> None:
    """Up to rounding, after a checkpoint of the plain kind too."""
    config = OptimizerConfig(learning_rate=0.1, weight_decay=0.1)
    stream = torch.Generator().manual_seed(0)
    start = torch.randn(5, 3, generator=stream)
    fused, plain = (nn.Parameter(start.clone()) for _ in range(2))
    optimizers = [config.build([fused]), torch.optim.AdamW([plain], 0.1, config.betas, weight_decay=0.1)]
    assert optimizers[0].defaults["fused"]

    def step() -> None:
        gradient = torch.randn(5, 3, generator=stream)
        for parameter, optimizer in zip((fused, plain), optimizers, strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()
        torch.testing.assert_close(fused, plain)

    step()
    optimizers[0].load_state_dict(deepcopy(optimizers[1].state_dict()))
    step()
    state = deepcopy(optimizers[0].state_dict()["state"])
    optimizers[1].load_state_dict(config.build([fused]).state_dict() | {"state": state})
    step()
