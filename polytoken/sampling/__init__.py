"""Sampling: noise of the rows, classifier-free guidance, categorical rules."""

from polytoken.sampling.categorical import CategoricalSampler, Draw
from polytoken.sampling.guidance import Guidance
from polytoken.sampling.row_noise import RowNoise

__all__ = ["CategoricalSampler", "Draw", "Guidance", "RowNoise"]
