"""Generators of tokens given a class, and their parts."""

from polytoken.generators.autoregressive import AutoregressiveGenerator
from polytoken.generators.base import Codec, Generator, GeneratorLoss
from polytoken.generators.heads import (
    AutoregressiveHead,
    Head,
    LinearHead,
    MaskedBitHead,
    MultiLinearHead,
    MultiMLPHead,
)
from polytoken.generators.noise import SubTokenNoise
from polytoken.transformer import SIZES, KVCache, Trunk, TrunkConfig

__all__ = [
    "SIZES",
    "AutoregressiveGenerator",
    "AutoregressiveHead",
    "Codec",
    "Generator",
    "GeneratorLoss",
    "Head",
    "KVCache",
    "LinearHead",
    "MaskedBitHead",
    "MultiLinearHead",
    "MultiMLPHead",
    "SubTokenNoise",
    "Trunk",
    "TrunkConfig",
]
