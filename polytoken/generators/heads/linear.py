"""Linear heads: LlamaGen's for one code, and one classifier a sub-code (SSQ Table 4)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from polytoken.errors import UserError
from polytoken.generators.heads.base import ClassifierHead
from polytoken.transformer import TrunkConfig


class MultiLinearHead(ClassifierHead):
    """One linear classifier a sub-code, independent of each other (SSQ Table 4).

    Args:
        norm: normalise the trunk's output once more; False as in VAR, whose trunk ends with a norm of its own.
        bias: of the classifiers; True as in VAR.
    """

    def __init__(self, norm: bool = True, bias: bool = False) -> None:
        super().__init__()
        self.final_norm = norm
        self.bias = bias

    def connect(self, trunk: TrunkConfig, codebook_sizes: Sequence[int], grid: tuple[int, int]) -> None:
        self._build_outputs(trunk.dim, codebook_sizes, self.final_norm, self.bias)

    def states(self, hidden: Tensor, codes: Tensor, embeddings: nn.ModuleList) -> Sequence[Tensor]:
        return [self.norm(hidden)] * len(self.outputs)


class LinearHead(MultiLinearHead):
    """Norm and a linear classifier, for one code per position (LlamaGen); arguments of :class:`MultiLinearHead`."""

    def connect(self, trunk: TrunkConfig, codebook_sizes: Sequence[int], grid: tuple[int, int]) -> None:
        """Raise UserError unless there is one codebook."""
        if len(codebook_sizes) != 1:
            raise UserError(
                f"LinearHead predicts one code per position and the data has {len(codebook_sizes)}: select one "
                "(data.sub_codes: [0]) or take AutoregressiveHead, MultiLinearHead or MultiMLPHead"
            )
        super().connect(trunk, codebook_sizes, grid)
