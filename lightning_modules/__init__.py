"""LightningModules: wiring of model, losses, optimizers and logging."""

from lightning_modules.captioning import CaptioningModule
from lightning_modules.classifier import ClassifierModule
from lightning_modules.dual_encoder import DualEncoderModule
from lightning_modules.extraction import ExtractionModule
from lightning_modules.generator import GeneratorModule
from lightning_modules.masked_patches import MaskedPatchModule
from lightning_modules.sampling import SamplingModule
from lightning_modules.tokenizer import TokenizerModule
from polytoken.optimization import OptimizerConfig

__all__ = [
    "CaptioningModule",
    "ClassifierModule",
    "DualEncoderModule",
    "ExtractionModule",
    "GeneratorModule",
    "MaskedPatchModule",
    "OptimizerConfig",
    "SamplingModule",
    "TokenizerModule",
]
