"""Multi-MLP head (SSQ Table 4)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from polytoken.generators.heads.base import ClassifierHead
from polytoken.ranges import at_least
from polytoken.transformer import RMSNorm, TrunkConfig


class MultiMLPHead(ClassifierHead):
    """One multi-layer perceptron a sub-code, independent of each other (SSQ Table 4).

    Args:
        hidden: width of the hidden layers; None is the trunk's.
        depth: hidden layers, each followed by SiLU.
    """

    def __init__(self, hidden: int | None = None, depth: int = 2) -> None:
        super().__init__()
        at_least(1, self, hidden=hidden, depth=depth)
        self.hidden = hidden
        self.depth = depth

    def connect(self, trunk: TrunkConfig, codebook_sizes: Sequence[int], grid: tuple[int, int]) -> None:
        width = self.hidden or trunk.dim
        self._build_outputs(width, codebook_sizes)
        self.norm = RMSNorm(trunk.dim)  # reads the trunk, as in the linear heads
        widths = [trunk.dim] + [width] * self.depth
        self.perceptrons = nn.ModuleList(
            nn.Sequential(
                *(layer for i in range(self.depth) for layer in (nn.Linear(widths[i], widths[i + 1]), nn.SiLU()))
            )
            for _ in codebook_sizes
        )

    def reset_parameters(self) -> None:
        """Initialise all weights; hidden layers keep the variance, for no skip leads around them."""
        super().reset_parameters()
        for layer in self.perceptrons.modules():
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

    def states(self, hidden: Tensor, codes: Tensor, embeddings: nn.ModuleList) -> Sequence[Tensor]:
        normed = self.norm(hidden)
        return [perceptron(normed) for perceptron in self.perceptrons]

    def reads_hidden(self, sub_code: int) -> bool:
        return False  # a fresh perceptron lies between
