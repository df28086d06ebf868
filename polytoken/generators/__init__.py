"""Generators of tokens given a class, and their parts."""

from polytoken.generators.alignment import RepresentationAlignment
from polytoken.generators.autoregressive import AutoregressiveGenerator
from polytoken.generators.base import Codec, Generator, GeneratorLoss
from polytoken.generators.code_alignment import CodeAlignment
from polytoken.generators.diffusion import DiffusionTransformer
from polytoken.generators.flow_matching import FlowMatching
from polytoken.generators.heads import (
    AutoregressiveHead,
    Head,
    LinearHead,
    MaskedBitHead,
    MultiLinearHead,
    MultiMLPHead,
)
from polytoken.generators.next_scale import NextScaleGenerator
from polytoken.generators.noise import SubTokenNoise
from polytoken.modulated_transformer import DIFFUSION_SIZES, DiffusionTrunkConfig
from polytoken.next_scale_transformer import NextScaleTrunkConfig
from polytoken.transformer import SIZES, RotaryCache, Trunk, TrunkConfig

__all__ = [
    "DIFFUSION_SIZES",
    "SIZES",
    "AutoregressiveGenerator",
    "AutoregressiveHead",
    "CodeAlignment",
    "Codec",
    "DiffusionTransformer",
    "DiffusionTrunkConfig",
    "FlowMatching",
    "Generator",
    "GeneratorLoss",
    "Head",
    "LinearHead",
    "MaskedBitHead",
    "MultiLinearHead",
    "MultiMLPHead",
    "NextScaleGenerator",
    "NextScaleTrunkConfig",
    "RepresentationAlignment",
    "RotaryCache",
    "SubTokenNoise",
    "Trunk",
    "TrunkConfig",
]
