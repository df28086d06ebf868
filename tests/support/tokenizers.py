"""Networks small enough for a unit test."""

import torch

from polytoken.quantizers import FactorizedQuantizer
from polytoken.tokenizers import ConvolutionalTokenizer


def tiny_tokenizer(image_size: int = 16, num_subspaces: int = 2, codebook_size: int = 16) -> ConvolutionalTokenizer:
    """An f8 tokenizer with two grids of codes, seeded."""
    torch.manual_seed(0)
    quantizer = FactorizedQuantizer(
        in_channels=32,
        num_subspaces=num_subspaces,
        codebook_size=codebook_size,
        code_dim=4,
        adapter="convolutional",
        adapter_depth=1,
        latent_channels=32,
    )
    return ConvolutionalTokenizer(
        quantizer,
        image_size=image_size,
        base_channels=32,
        channel_multipliers=(1, 1, 1, 1),
        num_res_blocks=1,
        latent_channels=32,
    )
