"""Checkpoints of FQGAN (arXiv 2411.16681): factorized tokenizers, released, and its generators FAR, which were not."""

from __future__ import annotations

import math

from polytoken.pretrained.released import llamagen
from polytoken.pretrained.released.convolutional import ConvolutionalShape, Pairs
from polytoken.pretrained.released.layout import Layout, Network, State, numbered, size
from polytoken.pretrained.released.release import Licence, Release, Table

# adapter and suffix of each subspace, in the order in which the decoder and FAR read them
DUAL = (("visual_head", "vis"), ("semantic_head", "sem"))
TRIPLE = (("visual_head", "vis"), ("semantic_head_mid", "sem_mid"), ("semantic_head_high", "sem_high"))
IN_A_BLOCK = {"ln_1": "norm1", "ln_2": "norm2", "attn": "self_attn", "mlp.c_fc": "linear1", "mlp.c_proj": "linear2"}


def tokenizer(state: State, image_size: int) -> Network:  # noqa: ARG001 - learned positions fix the grid
    """Describe a dual or triple tokenizer (section 3.1): ``fqgan_dual_ds16`` to ``fqgan_triple_ds8``."""
    subspaces = TRIPLE if "quantize_sem_mid.embedding.weight" in state else DUAL
    shape = ConvolutionalShape.of(state, llamagen.NAMES)
    depth = numbered(state, "encoder.visual_head.0.transformer.")
    side = math.isqrt(size(state, "encoder.visual_head.0.positional_embedding"))
    entries, code_dim = size(state, "quantize_vis.embedding.weight"), size(state, "quantize_vis.embedding.weight", 1)
    return Network(
        section={
            "class_path": "polytoken.tokenizers.ConvolutionalTokenizer",
            "init_args": {
                "image_size": side * shape.downsampling,
                **shape.arguments(),
                "latent_channels": size(state, "post_quant_conv.weight"),
                "projection_channels": size(state, "quant_conv_vis.weight", 1),
                "adapter": "transformer",
                "adapter_depth": depth,
                "quantizer": {
                    "class_path": "polytoken.quantizers.FactorizedQuantizer",
                    "init_args": {
                        "num_branches": len(subspaces),
                        "branch": {
                            "class_path": "polytoken.quantizers.VectorQuantizer",
                            "init_args": {"codebook_size": entries, "code_dim": code_dim},
                        },
                    },
                },
            },
        },
        layout=Layout(
            pairs=(
                *shape.pairs(llamagen.NAMES),
                *(pair for i, names in enumerate(subspaces) for pair in _subspace(i, *names, depth)),
            ),
            # the heads that predict a teacher's features serve training alone
            dropped=("quantize_*.codebook_used", "feat_pred_head.*", "*_sem_feat_pred.*"),
        ),
    )


def generator(state: State, image_size: int) -> Network:  # noqa: ARG001 - rotary positions are no weights
    """Describe a FAR generator (section 3.3)."""
    num_sub_codes = size(state, "aggregation_layer.weight", 1) // size(state, "aggregation_layer.weight")
    head = {
        "class_path": "polytoken.generators.AutoregressiveHead",
        "init_args": {"depth": numbered(state, "ar_head.")},
    }
    pairs = (
        ("aggregation_layer", "aggregation"),
        ("ar_head", "head.stack.blocks"),
        *((f"tok_embeddings_{i + 1}", f"embeddings.{i}") for i in range(num_sub_codes)),
        *((f"output_{i + 1}", f"head.outputs.{i}") for i in range(num_sub_codes)),
    )
    return llamagen.autoregressive(state, head, pairs)


def _subspace(index: int, head: str, suffix: str, depth: int) -> Pairs:
    adapter, tail = f"encoder.{head}.0", f"projection.tails.{index}"
    return (
        (adapter, f"projection.adapters.{index}"),
        *(
            (f"{adapter}.transformer.{block}.{released}", f"projection.adapters.{index}.blocks.{block}.{ours}")
            for block in range(depth)
            for released, ours in IN_A_BLOCK.items()
        ),
        (f"encoder.norm_out_{suffix}", f"{tail}.norm_out"),
        (f"encoder.conv_out_{suffix}", f"{tail}.conv_out"),
        (f"quant_conv_{suffix}", f"{tail}.quant_conv"),
        (f"quantize_{suffix}.embedding", f"quantizer.branches.{index}.embedding"),
    )


LICENCE = Licence("CC-BY-NC-4.0", "cc-by-nc-4.0", non_commercial=True)
_SOURCE = "arXiv 2411.16681, showlab/FQGAN"


def _tokenizer(kind: str, downsampling: int, sub_codes: int, published: str) -> Release:
    return Release(
        describe=tokenizer,
        licence=LICENCE,
        source=_SOURCE,
        repository="ZechenBai/FQGAN",
        file=f"fqgan_{kind}_ds{downsampling}.pt",
        downsampling=downsampling,
        sub_codes=sub_codes,
        published=published,
    )


def _far(kind: str, published: str, guidance: float) -> Release:
    return Release(
        describe=generator,
        licence=LICENCE,
        source=_SOURCE,
        tokenizer=f"fqgan/{kind}_ds16",
        published=published,
        remark=f"not released: a file of one's own training; the authors' sampler: guidance {guidance}",
    )


RELEASES: Table = {
    "fqgan/dual_ds16": _tokenizer("dual", 16, 2, "rFID 0.94"),
    "fqgan/triple_ds16": _tokenizer("triple", 16, 3, "rFID 0.76"),
    "fqgan/dual_ds8": _tokenizer("dual", 8, 2, "rFID 0.32"),
    "fqgan/triple_ds8": _tokenizer("triple", 8, 3, "rFID 0.24"),
    "fqgan/far_dual_base": _far("dual", "gFID 3.38", 2.0),
    "fqgan/far_triple_base": _far("triple", "gFID 3.84", 1.75),
    "fqgan/far_dual_large": _far("dual", "gFID 3.08", 2.0),
    "fqgan/far_triple_large": _far("triple", "gFID 3.09", 1.75),
}
