import copy
import io
import pickle

import pytest
import torch
from torch import nn

from polytoken.errors import UserError
from polytoken.frozen import FrozenNetwork
from tests.support.precision import caller_in_bfloat16


class Owner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.own = nn.Linear(2, 2)
        self.backbone = FrozenNetwork(self.build)

    def build(self) -> nn.Module:
        return nn.Sequential(nn.Linear(2, 3), nn.Dropout())


def test_a_frozen_network_is_used_but_not_owned() -> None:
    owner = Owner()
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    network = owner.backbone.on(torch.device("cpu"))
    assert torch.equal(torch.rand(1), expected), "building it leaves the random numbers as they were"
    assert owner.backbone.on(torch.device("cpu")) is network
    owner.train()
    assert not network.training
    assert len(list(owner.parameters())) == len(owner.state_dict()) == 2
    inputs = torch.rand(1, 2, requires_grad=True)
    network(inputs).sum().backward()
    assert inputs.grad is not None and all(weight.grad is None for weight in network.parameters())
    twin = copy.deepcopy(owner)
    assert twin.backbone.sha256() == owner.backbone.sha256()
    twin.backbone.on(torch.device("cpu"))[0].bias[0] += 1
    assert twin.backbone.sha256() != owner.backbone.sha256()


def test_a_first_use_in_inference_mode_serves_training_in_float32() -> None:
    frozen = FrozenNetwork(lambda: nn.Linear(2, 2))
    inputs = torch.rand(1, 2, requires_grad=True)
    with caller_in_bfloat16():
        network = frozen.on(torch.device("cpu"))
    network(inputs).sum().backward()
    assert inputs.grad is not None and network.weight.dtype == torch.float32
    with caller_in_bfloat16():
        frozen.on(torch.device("meta"))
    assert not any(weight.is_inference() for weight in network.parameters()), "after a move as well"


def test_a_loaded_network_is_pickled_without_its_loader() -> None:
    network = nn.Linear(2, 3)
    frozen = FrozenNetwork(lambda: network)
    digest = frozen.sha256()
    twin = pickle.loads(pickle.dumps(frozen))
    assert twin.sha256() == digest and twin.on(torch.device("cpu")) is not network


def test_a_network_that_was_saved_on_another_device_is_moved() -> None:
    frozen, saved = FrozenNetwork(lambda: nn.Linear(2, 3)), io.BytesIO()
    frozen.on(torch.device("cpu"))
    torch.save(frozen, saved)
    saved.seek(0)
    twin = torch.load(saved, map_location="meta", weights_only=False)
    with pytest.raises(NotImplementedError, match="meta tensor"):  # there is nothing that could be moved to the CPU
        twin.on(torch.device("cpu"))


def test_a_missing_package_is_one_sentence() -> None:
    def load() -> nn.Module:
        raise ModuleNotFoundError("No module named 'timm'")

    with pytest.raises(UserError, match=r"not installed \(No module named 'timm'\): .* pip install '\.\[suite\]'"):
        FrozenNetwork(load).on(torch.device("cpu"))
