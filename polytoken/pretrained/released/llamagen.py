"""Checkpoints of LlamaGen (arXiv 2406.06525): VQ tokenizers and class-conditional GPTs; the code is MIT-licensed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from polytoken.pretrained.released.convolutional import TAMING, describe
from polytoken.pretrained.released.layout import Layout, Network, State, numbered, size
from polytoken.pretrained.released.release import MIT, Release, Table

NAMES = replace(
    TAMING,
    encoder_stages="encoder.conv_blocks.",
    encoder_block="encoder.conv_blocks.{stage}.res.{block}",
    encoder_attention="encoder.conv_blocks.{stage}.attn.{block}",
    downsample="encoder.conv_blocks.{stage}.downsample.conv",
    decoder_block="decoder.conv_blocks.{stage}.res.{block}",
    decoder_attention="decoder.conv_blocks.{stage}.attn.{block}",
    upsample="decoder.conv_blocks.{stage}.upsample.conv",
    middle=("mid.0", "mid.1", "mid.2"),
    coarse_first=True,
)
HEADS = {3200: 32, 4096: 32}  # attention heads of the 3B and 7B models; those of the others are 64 channels wide
TRUNK = (("cls_embedding.embedding_table", "class_embedding"), ("layers", "trunk.blocks"), ("norm", "head.norm"))
TABLES = ("freqs_cis", "causal_mask", "*.kv_cache.*")


def tokenizer(state: State, image_size: int) -> Network:
    """Describe a VQ tokenizer (section 2.1): ``vq_ds16_c2i``, ``vq_ds8_c2i``."""
    entries, code_dim = size(state, "quantize.embedding.weight"), size(state, "quantize.embedding.weight", 1)
    quantizer = {
        "class_path": "polytoken.quantizers.VectorQuantizer",
        "init_args": {"codebook_size": entries, "code_dim": code_dim},
    }
    table = (("quantize.embedding", "quantizer.embedding"),)
    return describe(state, NAMES, image_size, quantizer, table, dropped=("quantize.codebook_used",))


def generator(state: State, image_size: int) -> Network:  # noqa: ARG001 - rotary positions are no weights
    """Describe a class-conditional GPT (section 2.2): ``c2i_B_256`` to ``c2i_3B_384``."""
    head = {"class_path": "polytoken.generators.LinearHead"}
    return autoregressive(state, head, (("tok_embeddings", "embeddings.0"), ("output", "head.outputs.0")))


def autoregressive(
    state: State,
    head: dict[str, Any],
    pairs: tuple[tuple[str, str], ...],
    aggregation: str = "concatenation",
    dropped: tuple[str, ...] = (),
) -> Network:
    """Describe a generator with LlamaGen's trunk.

    Args:
        state: released weights.
        head: class path and arguments.
        pairs: released and our names of embeddings and head.
        aggregation: of the embeddings of several sub-codes.
        dropped: patterns of entries that are no weights here, besides LlamaGen's tables.
    """
    return Network(
        section={
            "class_path": "polytoken.generators.AutoregressiveGenerator",
            "init_args": {"trunk": trunk(state), "head": head, "aggregation": aggregation},
        },
        layout=Layout(pairs=(*TRUNK, *pairs), dropped=(*TABLES, *dropped)),
    )


def trunk(state: State) -> dict[str, int]:
    """Return the sizes of a trunk as arguments of TrunkConfig."""
    depth, dim = numbered(state, "layers."), size(state, "norm.weight")
    return {"dim": dim, "depth": depth, "num_heads": HEADS.get(dim, dim // 64)}


_SOURCE = "arXiv 2406.06525, FoundationVision/LlamaGen"
_REPOSITORY = "FoundationVision/LlamaGen"


def _vq(downsampling: int, published: str) -> Release:
    return Release(
        describe=tokenizer,
        licence=MIT,
        source=_SOURCE,
        repository=_REPOSITORY,
        file=f"vq_ds{downsampling}_c2i.pt",
        downsampling=downsampling,
        published=published,
    )


def _gpt(size: str, image_size: int, published: str, guidance: float) -> Release:
    resized = f"; samples of {image_size} px resized to 256 px (--model.image_size 256)" if image_size > 256 else ""
    return Release(
        describe=generator,
        licence=MIT,
        source=_SOURCE,
        repository=_REPOSITORY,
        file=f"c2i_{size}_{image_size}.pt",
        image_size=image_size,
        tokenizer="llamagen/vq_ds16_c2i",
        published=published,
        remark=f"the authors' sampler: guidance {guidance}{resized}",
    )


RELEASES: Table = {
    "llamagen/vq_ds16_c2i": _vq(16, "rFID 2.19"),
    "llamagen/vq_ds8_c2i": _vq(8, "rFID 0.59"),
    "llamagen/c2i_B_256": _gpt("B", 256, "gFID 5.46", 2.0),
    "llamagen/c2i_L_256": _gpt("L", 256, "gFID 3.80", 2.0),
    "llamagen/c2i_B_384": _gpt("B", 384, "gFID 6.09", 2.0),
    "llamagen/c2i_L_384": _gpt("L", 384, "gFID 3.07", 2.0),
    "llamagen/c2i_XL_384": _gpt("XL", 384, "gFID 2.62", 1.75),
    "llamagen/c2i_XXL_384": _gpt("XXL", 384, "gFID 2.34", 1.75),
    "llamagen/c2i_3B_384": _gpt("3B", 384, "gFID 2.18", 1.65),
}
