"""Generators: networks that learn to write a tokenizer's codes, and what they are made of."""

from models.generators.autoregressive import AutoregressiveGenerator, GeneratorLoss
from models.generators.heads import AutoregressiveHead, Head, LinearHead, MultiLinearHead, MultiMLPHead
from models.generators.noise import SubTokenNoise
from models.generators.sampling import Sampler
from models.generators.transformer import SIZES, KVCache, Trunk, TrunkConfig

__all__ = [
    "SIZES",
    "AutoregressiveGenerator",
    "AutoregressiveHead",
    "GeneratorLoss",
    "Head",
    "KVCache",
    "LinearHead",
    "MultiLinearHead",
    "MultiMLPHead",
    "Sampler",
    "SubTokenNoise",
    "Trunk",
    "TrunkConfig",
]
