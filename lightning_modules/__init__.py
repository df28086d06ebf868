"""LightningModules: wiring of model, losses, optimizers and logging."""

from lightning_modules.autoregressive import AutoregressiveModule
from lightning_modules.classifier import ClassifierModule
from lightning_modules.extraction import ExtractionModule
from lightning_modules.masked_patches import MaskedPatchModule
from lightning_modules.optimization import OptimizerConfig
from lightning_modules.pipeline import Generator
from lightning_modules.sampling import SamplingModule
from lightning_modules.tokenizer import TokenizerModule

__all__ = [
    "AutoregressiveModule",
    "ClassifierModule",
    "ExtractionModule",
    "Generator",
    "MaskedPatchModule",
    "OptimizerConfig",
    "SamplingModule",
    "TokenizerModule",
]
