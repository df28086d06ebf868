"""Networks small enough for a unit test."""

from pathlib import Path
from typing import Any

import torch

from polytoken.quantizers import FactorizedQuantizer, MultiScaleQuantizer, Quantizer, VectorQuantizer
from polytoken.teachers import SmallVisionTransformer, Teacher
from polytoken.teachers.stand_in import Pooling
from polytoken.tokenizers import (
    ConvolutionalTokenizer,
    FeatureDecoderConfig,
    FoldedTokenizer,
    RepresentationTokenizer,
    VisionTransformerConfig,
)


def tiny_tokenizer(
    image_size: int = 16, num_subspaces: int = 2, codebook_size: int = 16, branch: Quantizer | None = None
) -> ConvolutionalTokenizer:
    """An f8 tokenizer with random weights of seed 0."""
    torch.manual_seed(0)
    return ConvolutionalTokenizer(
        FactorizedQuantizer(branch or VectorQuantizer(codebook_size, code_dim=4), num_subspaces),
        image_size=image_size,
        base_channels=32,
        channel_multipliers=(1, 1, 1, 1),
        num_res_blocks=1,
        latent_channels=32,
        projection_channels=32,
        adapter="convolutional",
        adapter_depth=1,
    )


def tiny_scales(num_subspaces: int = 2) -> ConvolutionalTokenizer:
    """An f8 tokenizer of images of 16 pixels with scales of 1 × 1 and 2 × 2, with random weights of seed 0."""
    torch.manual_seed(0)
    branch = MultiScaleQuantizer((1, 2), codebook_size=16, code_dim=4, num_convolutions=2, dropout_start=1)
    return tiny_tokenizer(num_subspaces=num_subspaces, branch=branch)


def tiny_folded(num_branches: int = 2) -> FoldedTokenizer:
    """A folded tokenizer of images of 16 pixels with scales of 1 × 1, 2 × 2 and 3 × 3; random weights of seed 0."""
    torch.manual_seed(0)
    made = FoldedTokenizer(
        FactorizedQuantizer(MultiScaleQuantizer((1, 2, 3), 16, 4, num_convolutions=2), num_branches),
        grid_size=3,
        image_size=16,
        transformer=VisionTransformerConfig(4, 32, depth=2, num_heads=4, stochastic_depth=0.0, layer_scale=None),
    )
    torch.nn.init.normal_(made.queries)  # otherwise all positions of an untrained branch are nearly equal
    return made


def tiny_representation(
    directory: Path, quantizer: Quantizer | None = None, pooling: Pooling = "token", **changes: Any
) -> RepresentationTokenizer:
    """An f8 tokenizer of images of 16 pixels on a stand-in of three blocks, written into ``directory``; seed 0."""
    torch.manual_seed(0)
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / "foundation.safetensors"
    SmallVisionTransformer(16, patch_size=8, width=32, depth=3, num_heads=4, pooling=pooling).save(file)
    settings = {
        "shallow": 1,
        "image_size": 16,
        "feature_decoder": FeatureDecoderConfig(depth=1, num_heads=4, dropout=0.0),
        "base_channels": 32,
        "channel_multipliers": (1, 1, 1, 1),
    } | changes
    return RepresentationTokenizer(quantizer or VectorQuantizer(16, 4), Teacher("stand_in", str(file)), **settings)
