"""Heads of a generator, one file a kind."""

from polytoken.generators.heads.autoregressive import AutoregressiveHead
from polytoken.generators.heads.base import ClassifierHead, Head, HeadLoss
from polytoken.generators.heads.linear import LinearHead, MultiLinearHead
from polytoken.generators.heads.masked_bits import MaskedBitHead
from polytoken.generators.heads.mlp import MultiMLPHead

__all__ = [
    "AutoregressiveHead",
    "ClassifierHead",
    "Head",
    "HeadLoss",
    "LinearHead",
    "MaskedBitHead",
    "MultiLinearHead",
    "MultiMLPHead",
]
