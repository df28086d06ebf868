"""Low-rank updates of frozen weights (LoRA, arXiv 2106.09685)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from polytoken.errors import UserError


class LowRankUpdate(nn.Module):
    """W + U·D in the place of a weight W (out, in); U starts at 0.

    Args:
        weight: W.
        rank: columns of U and rows of D.
    """

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        rows, columns = weight.shape
        if not 1 <= rank <= min(rows, columns):
            raise UserError(f"rank is {rank}, and updates of {rows} × {columns} weights have 1 to {min(rows, columns)}")
        self.up = nn.Parameter(torch.zeros(rows, rank))
        self.down = nn.Parameter(nn.init.normal_(torch.empty(rank, columns), std=columns**-0.5))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.up @ self.down


def update_feed_forward(network: nn.Module, rank: int) -> None:
    """Give both feed-forward layers of timm's blocks in ``network`` a trainable low-rank update."""
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear) and name.endswith(("mlp.fc1", "mlp.fc2")):
            parametrize.register_parametrization(module, "weight", LowRankUpdate(module.weight, rank))


def updated_name(name: str) -> str | None:
    """Name of a tensor of a state dict without its update; None for a part of the update itself."""
    name = name.replace(".parametrizations.weight.original", ".weight")
    return None if ".parametrizations.weight." in name else name
