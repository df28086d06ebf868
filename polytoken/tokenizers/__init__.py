"""Tokenizers: images to codes and back."""

from polytoken.specs import Encoding, TokenSpec
from polytoken.tokenizers.base import Tokenizer
from polytoken.tokenizers.convolutional import ConvolutionalTokenizer

__all__ = ["ConvolutionalTokenizer", "Encoding", "TokenSpec", "Tokenizer"]
