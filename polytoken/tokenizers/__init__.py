"""Tokenizers: images to codes and back."""

from polytoken.specs import Encoding, TokenSpec
from polytoken.tokenizers.base import Tokenizer
from polytoken.tokenizers.convolutional import ConvolutionalTokenizer
from polytoken.tokenizers.folded import FoldedTokenizer, VisionTransformerConfig

__all__ = [
    "ConvolutionalTokenizer",
    "Encoding",
    "FoldedTokenizer",
    "TokenSpec",
    "Tokenizer",
    "VisionTransformerConfig",
]
