"""Loss terms: each reads one TokenizerStep and returns one scalar."""

from polytoken.losses.adversarial import Adversarial
from polytoken.losses.alignment import FeatureAlignment
from polytoken.losses.base import LossTerm, TokenizerStep
from polytoken.losses.disentanglement import Disentanglement
from polytoken.losses.objective import TokenizerObjective
from polytoken.losses.perceptual import LPIPS, JudgeFeatures
from polytoken.losses.reconstruction import Reconstruction

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
