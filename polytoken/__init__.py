"""Image tokenizers with several discrete codes for each patch, and the generators that learn to produce those codes.

Plain PyTorch. ``polytoken.metrics`` cannot be imported without the extra ``suite``. ``polytoken.teachers``, the
perceptual terms of ``polytoken.losses`` and ``FoldedTokenizer`` need packages of it when they are used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polytoken.errors import UserError
    from polytoken.generators import Generator
    from polytoken.images import read_image, write_image
    from polytoken.loading import load_generator, load_tokenizer
    from polytoken.pipeline import GenerationPipeline
    from polytoken.precision import full_precision
    from polytoken.pretrained import from_pretrained, save_pretrained
    from polytoken.sampling import CategoricalSampler, FlowSampler, Forcing
    from polytoken.specs import Decoded, Encoding, LatentSpec, Tokens, TokenSpec
    from polytoken.tokenizers import Tokenizer

__all__ = [
    "CategoricalSampler",
    "Decoded",
    "Encoding",
    "FlowSampler",
    "Forcing",
    "GenerationPipeline",
    "Generator",
    "LatentSpec",
    "TokenSpec",
    "Tokenizer",
    "Tokens",
    "UserError",
    "from_pretrained",
    "full_precision",
    "load_generator",
    "load_tokenizer",
    "read_image",
    "save_pretrained",
    "write_image",
]

_HOMES = {
    "errors": ("UserError",),
    "generators": ("Generator",),
    "images": ("read_image", "write_image"),
    "loading": ("load_generator", "load_tokenizer"),
    "pipeline": ("GenerationPipeline",),
    "precision": ("full_precision",),
    "pretrained": ("from_pretrained", "save_pretrained"),
    "sampling": ("CategoricalSampler", "FlowSampler", "Forcing"),
    "specs": ("Decoded", "Encoding", "LatentSpec", "TokenSpec", "Tokens"),
    "tokenizers": ("Tokenizer",),
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that programs which read files only do not import torch."""
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"polytoken.{module}"), name)
    raise AttributeError(f"module 'polytoken' has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the public names, also those not yet imported."""
    return [*globals(), *__all__]
