"""Loss terms: each reads one TokenizerStep and returns one scalar."""

from losses.adversarial import Adversarial
from losses.alignment import FeatureAlignment
from losses.base import LossTerm, TokenizerStep
from losses.disentanglement import Disentanglement
from losses.objective import TokenizerObjective
from losses.perceptual import LPIPS, JudgeFeatures
from losses.reconstruction import Reconstruction

__all__ = [
    "LPIPS",
    "Adversarial",
    "Disentanglement",
    "FeatureAlignment",
    "JudgeFeatures",
    "LossTerm",
    "Reconstruction",
    "TokenizerObjective",
    "TokenizerStep",
]
