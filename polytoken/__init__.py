"""Image tokenizers with several discrete codes for each patch, and the generators that learn to produce those codes.

Plain PyTorch. ``polytoken.metrics``, ``polytoken.teachers`` and the perceptual terms of ``polytoken.losses`` need
packages of the extra ``suite``, which they import when they are used.
"""

from polytoken.errors import UserError
from polytoken.images import read_image, write_image
from polytoken.loading import load_generator, load_tokenizer
from polytoken.pipeline import GenerationPipeline
from polytoken.specs import Decoded, Encoding, LatentSpec, Tokens, TokenSpec

__all__ = [
    "Decoded",
    "Encoding",
    "GenerationPipeline",
    "LatentSpec",
    "TokenSpec",
    "Tokens",
    "UserError",
    "load_generator",
    "load_tokenizer",
    "read_image",
    "write_image",
]
