"""Sampling: noise of the rows, classifier-free guidance, rules for codes and for flows."""

from polytoken.sampling.categorical import CategoricalSampler, Draw
from polytoken.sampling.flow import FlowSampler
from polytoken.sampling.forcing import ForcedCodes, ForcedDraw, Forcing
from polytoken.sampling.guidance import Guidance
from polytoken.sampling.row_noise import RowNoise
from polytoken.sampling.settings import SamplerSettings

__all__ = [
    "CategoricalSampler",
    "Draw",
    "FlowSampler",
    "ForcedCodes",
    "ForcedDraw",
    "Forcing",
    "Guidance",
    "RowNoise",
    "SamplerSettings",
]
