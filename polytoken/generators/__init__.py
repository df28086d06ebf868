"""Generators: networks that learn to write a tokenizer's codes, and what they are made of."""

from polytoken.generators.autoregressive import AutoregressiveGenerator, GeneratorLoss
from polytoken.generators.heads import AutoregressiveHead, Head, LinearHead, MultiLinearHead, MultiMLPHead
from polytoken.generators.noise import SubTokenNoise
from polytoken.sampling.categorical import Sampler
from polytoken.transformer import SIZES, KVCache, Trunk, TrunkConfig

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
