"""Checkpoints of VAR (arXiv 2404.02905): multi-scale tokenizer and next-scale generators; the code is MIT-licensed."""

from __future__ import annotations

from polytoken.errors import UserError
from polytoken.pretrained.released.convolutional import TAMING, ConvolutionalShape, describe
from polytoken.pretrained.released.layout import Joined, Layout, Network, Permuted, State, numbered, size
from polytoken.pretrained.released.reading import PLACES
from polytoken.pretrained.released.release import MIT, Release, Table

TRAINED = ("trainer", "var_wo_ddp")  # generator in a checkpoint of VAR's own training, and the tokenizer next to it
TRAINED_TOKENIZER = ("trainer", "vae_local")
SCALES = {16: (1, 2, 3, 4, 5, 6, 8, 10, 13, 16), 32: (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)}
"""Sides of the grids by the side of the finest one: of images of 256 and 512 pixels."""


def tokenizer(state: State, image_size: int) -> Network:
    """Describe the multi-scale tokenizer (section 3.2): ``vae_ch160v4096z32``.

    Raises:
        UserError: for an image size whose scales VAR does not define.
    """
    side = image_size // ConvolutionalShape.of(state, TAMING).downsampling
    if side not in SCALES:
        raise UserError(f"VAR has no scales that end at {side} × {side}: choose an image_size of 256 or 512")
    quantizer = {
        "class_path": "polytoken.quantizers.MultiScaleQuantizer",
        "init_args": {
            "scales": [*SCALES[side]],
            "codebook_size": size(state, "quantize.embedding.weight"),
            "code_dim": size(state, "quantize.embedding.weight", 1),
            "normalize": False,
            "num_convolutions": numbered(state, "quantize.quant_resi.qresi_ls."),
        },
    }
    tables = (
        ("quantize.embedding", "quantizer.embedding"),
        ("quantize.quant_resi.qresi_ls", "quantizer.convolutions"),
    )
    return describe(state, TAMING, image_size, quantizer, tables, dropped=("quantize.ema_vocab_hit_SV",))


def generator(state: State, image_size: int) -> Network:  # noqa: ARG001 - the tokenizer has the scales
    """Describe a next-scale generator (section 3.1): ``d16`` to ``d36``."""
    return next_scale(state, branches=1)


def next_scale(state: State, branches: int) -> Network:
    """Describe a next-scale generator whose classifier joins the sub-codes of several branches.

    Args:
        state: released weights.
        branches: of its tokenizer.
    """
    depth, dim = numbered(state, "blocks."), size(state, "word_embed.weight")
    outputs = tuple(
        Joined((f"head.{kind}",), tuple(f"head.outputs.{branch}.{kind}" for branch in range(branches)))
        for kind in ("weight", "bias")
    )
    blocks = tuple(pair for block in range(depth) for pair in _block(f"blocks.{block}", f"trunk.blocks.{block}"))
    offsets = tuple((f"blocks.{block}.ada_gss", f"trunk.blocks.{block}.modulation_offset") for block in range(depth))
    shared = offsets[0][0] in state
    trunk = {"depth": depth, "dim": dim, "num_heads": size(state, "blocks.0.attn.scale_mul_1H11", 1)}
    return Network(
        section={
            "class_path": "polytoken.generators.NextScaleGenerator",
            "init_args": {
                "trunk": {**trunk, "shared_modulation": shared},
                "head": {
                    "class_path": "polytoken.generators.MultiLinearHead",
                    "init_args": {"norm": False, "bias": True},
                },
            },
        },
        layout=Layout(
            pairs=(
                ("class_emb", "class_embedding"),
                ("word_embed", "word_embedding"),
                ("pos_start", "start_embedding.weight"),
                ("pos_1LC", "position_embedding.weight"),
                ("lvl_embed", "level_embedding"),
                *blocks,
                *offsets,
                ("shared_ada_lin.1", "trunk.shared_modulation"),
                ("head_nm.ada_lin.1", "trunk.modulation"),
            ),
            joined=outputs,
            permuted=tuple(Permuted(*pair, axes=(0, 1, 2, 3)) for pair in offsets if shared),  # six rows here are one
            dropped=("lvl_1L", "attn_bias_for_masking", "blocks.*.attn.zero_k_bias"),
        ),
    )


def _block(released: str, ours: str) -> tuple[tuple[str, str], ...]:
    return (
        (f"{released}.attn.scale_mul_1H11", f"{ours}.attention.log_scale"),
        (f"{released}.attn.q_bias", f"{ours}.attention.query_bias"),
        (f"{released}.attn.v_bias", f"{ours}.attention.value_bias"),
        (f"{released}.attn.mat_qkv", f"{ours}.attention.wqkv"),
        (f"{released}.attn.proj", f"{ours}.attention.wo"),
        (f"{released}.ffn.fc1", f"{ours}.ffn_in"),
        (f"{released}.ffn.fc2", f"{ours}.ffn_out"),
        (f"{released}.ada_lin.1", f"{ours}.modulation"),
    )


_SOURCE = "arXiv 2404.02905, FoundationVision/VAR"
_REPOSITORY = "FoundationVision/var"
_TOKENIZER = "var/vae_ch160v4096z32"
GUIDANCE = "the authors' scale of guidance begins at 0: add 1, and take guidance_schedule linear"


def _var(depth: int, published: str, image_size: int = 256) -> Release:
    return Release(
        describe=generator,
        licence=MIT,
        source=_SOURCE,
        repository=_REPOSITORY,
        file=f"var_d{depth}.pth",
        image_size=image_size,
        tokenizer=_TOKENIZER,
        places=(TRAINED, *PLACES),
        published=published,
        remark=f"{GUIDANCE}; published with a scale of 1.5, top_k 900 and top_p 0.96",
    )


RELEASES: Table = {
    _TOKENIZER: Release(
        describe=tokenizer,
        licence=MIT,
        source=_SOURCE,
        repository=_REPOSITORY,
        file="vae_ch160v4096z32.pth",
        places=(TRAINED_TOKENIZER, *PLACES),
    ),
    "var/d16": _var(16, "gFID 3.55"),
    "var/d20": _var(20, "gFID 2.95"),
    "var/d24": _var(24, "gFID 2.33"),
    "var/d30": _var(30, "gFID 1.97"),
    "var/d36": _var(36, "gFID 2.63", image_size=512),
}
