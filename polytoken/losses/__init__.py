"""Loss terms of tokenizers, the objective that sums them, and the adversarial block."""

from polytoken.losses.adversarial import Adversarial
from polytoken.losses.alignment import FeatureAlignment
from polytoken.losses.base import LossTerm, TokenizerStep, teacher_key
from polytoken.losses.consistency import Consistency
from polytoken.losses.disentanglement import Disentanglement
from polytoken.losses.feature_reconstruction import FeatureReconstruction
from polytoken.losses.lecam import LeCam
from polytoken.losses.objective import TokenizerObjective
from polytoken.losses.perceptual import LPIPS, ClassifierFeatures, EfficientNetFeatures
from polytoken.losses.reconstruction import Reconstruction
from polytoken.losses.semantic import SemanticContrast

__all__ = [
    "LPIPS",
    "Adversarial",
    "ClassifierFeatures",
    "Consistency",
    "Disentanglement",
    "EfficientNetFeatures",
    "FeatureAlignment",
    "FeatureReconstruction",
    "LeCam",
    "LossTerm",
    "Reconstruction",
    "SemanticContrast",
    "TokenizerObjective",
    "TokenizerStep",
    "teacher_key",
]
