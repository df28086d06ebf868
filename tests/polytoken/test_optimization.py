import torch
from torch import nn

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
