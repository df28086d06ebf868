"""Networks small enough for a unit test."""

import torch

from polytoken.quantizers import FactorizedQuantizer, VectorQuantizer
from polytoken.tokenizers import ConvolutionalTokenizer


def tiny_tokenizer(image_size: int = 16, num_subspaces: int = 2, codebook_size: int = 16) -> ConvolutionalTokenizer:
    """An f8 tokenizer with random weights of seed 0."""
    torch.manual_seed(0)
    return ConvolutionalTokenizer(
        FactorizedQuantizer(VectorQuantizer(codebook_size, code_dim=4), num_subspaces),
        image_size=image_size,
        base_channels=32,
        channel_multipliers=(1, 1, 1, 1),
        num_res_blocks=1,
        latent_channels=32,
        projection_channels=32,
        adapter="convolutional",
        adapter_depth=1,
    )
