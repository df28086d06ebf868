import copy

import torch
from torch import nn

from polytoken.frozen import FrozenNetwork


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
