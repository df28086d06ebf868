"""Tokenizers: images to codes and back."""

from polytoken.specs import Encoding, TokenSpec
from polytoken.tokenizers.base import Tokenizer
from polytoken.tokenizers.convolutional import ConvolutionalTokenizer
from polytoken.tokenizers.feature_decoder import FeatureDecoderConfig
from polytoken.tokenizers.folded import FoldedTokenizer, VisionTransformerConfig
from polytoken.tokenizers.representation import RepresentationTokenizer

__all__ = [
    "ConvolutionalTokenizer",
    "Encoding",
    "FeatureDecoderConfig",
    "FoldedTokenizer",
    "RepresentationTokenizer",
    "TokenSpec",
    "Tokenizer",
    "VisionTransformerConfig",
]
