"""Tokenizers: images to codes and back."""

from models.encoding import Encoding, TokenSpec
from models.tokenizers.base import Tokenizer
from models.tokenizers.convolutional import ConvolutionalTokenizer

__all__ = ["ConvolutionalTokenizer", "Encoding", "TokenSpec", "Tokenizer"]
