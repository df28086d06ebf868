"""Checkpoints of iFSQ (arXiv 2601.17124): tokenizers, LlamaGen and DiT on their codes; no weights were released."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from polytoken.pretrained.released import lightningdit, llamagen
from polytoken.pretrained.released.convolutional import TAMING, describe
from polytoken.pretrained.released.layout import Network, State, numbered, size
from polytoken.pretrained.released.release import APACHE, Release, Table

NAMES = replace(TAMING, middle=("mid_block.0", "mid_block.1"))
LEVELS, ALPHA = 17, 1.6  # of the released recipe; the file holds neither
LATENT_SCALE = 1.092421  # by which the released recipe multiplies the latents of a DiT


def tokenizer(state: State, image_size: int, num_sub_codes: int = 1) -> Network:
    """Describe a tokenizer of 4 bits a channel (section 3).

    Args:
        state: its weights.
        image_size: pixels a side.
        num_sub_codes: groups of channels, each of which is one code: 2 for the released ``factorized_bits: [2, 2]``.
    """
    quantizer = {
        "class_path": "polytoken.quantizers.FiniteScalarQuantizer",
        "init_args": {
            "levels": [LEVELS] * size(state, "quant_conv.weight"),
            "alpha": ALPHA,
            "cells": "rounding",
            "order": "little_endian",
            "num_sub_codes": num_sub_codes,
        },
    }
    # what the released quantizer stores are statistics of the encoder's output, for the log
    return describe(state, NAMES, image_size, quantizer, dropped=("quantize.*",))


def llamagen_repa(state: State, image_size: int) -> Network:
    """Describe LlamaGen-REPA with one softmax over all codes (section 4.1.3)."""
    network = llamagen.generator(state, image_size)
    return replace(network, layout=replace(network.layout, dropped=(*network.layout.dropped, "projectors.*")))


def llamagen_grouped(state: State, image_size: int) -> Network:  # noqa: ARG001 - rotary positions are no weights
    """Describe LlamaGen-REPA over groups of channels, predicted one after the other (``factorized_bits``)."""
    head = {
        "class_path": "polytoken.generators.AutoregressiveHead",
        "init_args": {"depth": numbered(state, "factorized_blocks.")},
    }
    pairs = (
        ("factorized_blocks", "head.stack.blocks"),
        ("output", "head.outputs"),
        *((f"{i}_emb", f"embeddings.{i}") for i in range(numbered(state, "output."))),
    )
    return llamagen.autoregressive(state, head, pairs, aggregation="sum", dropped=("projectors.*",))


def transformer(state: State, image_size: int) -> Network:  # noqa: ARG001 - stored positions fix the grid
    """Describe a DiT on the vectors of the codes (section 4.1.2)."""
    channels = size(state, "x_embedder.proj.weight", 1)
    return lightningdit.transformer(state, (0.0,) * channels, (1 / LATENT_SCALE,) * channels)


_TOKENIZER = Release(
    tokenizer,
    APACHE,
    "arXiv 2601.17124, Tencent-Hunyuan/iFSQ",
    remark="of 17 levels and alpha 1.6, which the file does not hold",
)
_F16, _F8, _GROUPED = "ifsq/f16_d4_4bit", "ifsq/f8_d4_4bit", "ifsq/f16_d4_4bit_grouped"

RELEASES: Table = {
    _F16: replace(_TOKENIZER, downsampling=16),
    _F8: replace(_TOKENIZER, downsampling=8),
    _GROUPED: replace(_TOKENIZER, downsampling=16, describe=partial(tokenizer, num_sub_codes=2)),
    "ifsq/llamagen_l": replace(
        _TOKENIZER, describe=llamagen_repa, tokenizer=_F16, published="gFID 28.07 without guidance", remark=""
    ),
    "ifsq/llamagen_l_grouped": replace(_TOKENIZER, describe=llamagen_grouped, tokenizer=_GROUPED, remark=""),
    "ifsq/dit_l1": replace(_TOKENIZER, describe=transformer, tokenizer=_F16, remark=""),
    "ifsq/dit_l2": replace(
        _TOKENIZER, describe=transformer, tokenizer=_F8, published="gFID 10.48 without guidance", remark=""
    ),
}
