"""Checkpoints of ImageFolder (arXiv 2410.01756), as XQ-GAN released it: folded tokenizers, a next-scale generator."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from polytoken.errors import UserError
from polytoken.pretrained.released import var
from polytoken.pretrained.released.layout import Layout, Network, Permuted, State, numbered, size
from polytoken.pretrained.released.reading import PLACES
from polytoken.pretrained.released.release import Licence, Release, Table
from polytoken.quantizers.multiscale import IMAGEFOLDER_SCALES

HEAD_DIM = 64  # of DINOv2 in all sizes
IN_A_TRANSFORMER = {"cls_token": "class_token", "pos_embed": "positions", "blocks": "blocks", "norm": "norm"}
QUERIES = ("encoder.latent_tokens", "queries")
PIXELS = ("decoder.to_pixel.model.weight", "pixels.weight")
PIXEL_BIAS = ("decoder.to_pixel.model.bias", "pixels.bias")


def tokenizer(state: State, image_size: int) -> Network:
    """Describe a folded tokenizer (section 3.1), of ten scales (``MSVR10P2``) or one (``VP2``)."""
    branches, depth = numbered(state, "quantizes."), numbered(state, "encoder.model.blocks.")
    dim, patch = (size(state, "encoder.model.patch_embed.proj.weight", axis) for axis in (0, 2))
    side = math.isqrt(size(state, "encoder.latent_tokens", 1) // branches)
    layer_scale = 1e-5 if "encoder.model.blocks.0.ls1.gamma" in state else None
    return Network(
        section={
            "class_path": "polytoken.tokenizers.FoldedTokenizer",
            "init_args": {
                "image_size": image_size,
                "grid_size": side,
                "transformer": {
                    "patch_size": patch,
                    "dim": dim,
                    "depth": depth,
                    "num_heads": dim // HEAD_DIM,
                    "layer_scale": layer_scale,
                },
                "decoder_class_tokens": 2,
                "quantizer": {
                    "class_path": "polytoken.quantizers.FactorizedQuantizer",
                    "init_args": {"num_branches": branches, "branch": _branch(state, side)},
                },
            },
        },
        layout=Layout(
            pairs=(
                *((f"encoder.model.{name}", f"encoder.{ours}") for name, ours in IN_A_TRANSFORMER.items()),
                *((f"decoder.model.{name}", f"decoder.{ours}") for name, ours in IN_A_TRANSFORMER.items()),
                ("encoder.model.patch_embed.proj", "patch_embedding"),
                ("encoder.lvl_embed", "encoder.levels"),
                ("decoder.lvl_embed", "decoder.levels"),
                ("decoder.mask_token", "mask_token"),
                *(QUERIES, PIXELS, PIXEL_BIAS),
                ("quant_conv", "quant_conv"),
                ("post_quant_conv", "post_quant_conv"),
                *(pair for i in range(branches) for pair in _quantizer(f"quantizes.{i}", f"quantizer.branches.{i}")),
            ),
            permuted=(
                Permuted(*QUERIES, axes=(0, 1, 2), sizes=(branches, side**2, dim)),
                # pixels of a patch: row, column, channel there, and channel, row, column here
                Permuted(*PIXELS, axes=(2, 0, 1, 3), sizes=(patch, patch, 3, dim)),
                Permuted(*PIXEL_BIAS, axes=(2, 0, 1), sizes=(patch, patch, 3)),
            ),
            # teachers and what compares with them serve training alone
            dropped=(
                "semantic_model.*",
                "detail_model.*",
                "sem_linear.*",
                "encoder.lvl1LC",
                "decoder.lvl1LC",
                "quantizes.*.ema_vocab_hit_SV",
            ),
        ),
    )


def generator(state: State, image_size: int) -> Network:  # noqa: ARG001 - the tokenizer has the scales
    """Describe a next-scale generator (section 3.2): the classifier holds the branches one after the other."""
    network = var.next_scale(state, branches=2)
    # of training with inputs left out
    return replace(network, layout=replace(network.layout, dropped=(*network.layout.dropped, "empty_emb.*")))


def _branch(state: State, side: int) -> dict[str, Any]:
    table = "quantizes.0.embedding.weight"
    sizes = {"codebook_size": size(state, table), "code_dim": size(state, table, 1)}
    if not any(name.startswith("quantizes.0.quant_resi.") for name in state):
        return {"class_path": "polytoken.quantizers.VectorQuantizer", "init_args": sizes}
    if side != IMAGEFOLDER_SCALES[-1]:
        raise UserError(f"its codes end at {side} × {side}, and the scales of released tokenizers at 11 × 11")
    convolutions = numbered(state, "quantizes.0.quant_resi.qresi_ls.")
    return {
        "class_path": "polytoken.quantizers.MultiScaleQuantizer",
        "init_args": {"scales": [*IMAGEFOLDER_SCALES], **sizes, "num_convolutions": convolutions},
    }


def _quantizer(released: str, ours: str) -> tuple[tuple[str, str], ...]:
    return (
        (f"{released}.embedding", f"{ours}.embedding"),
        (f"{released}.quant_resi.qresi_ls", f"{ours}.convolutions"),
    )


LICENCE = Licence("Adobe Research License", "other", non_commercial=True)
_SOURCE = "arXiv 2410.01756, lxa9867/ImageFolder"
_REPOSITORY = "qiuk6/XQ-GAN"
_TOKENIZER = Release(tokenizer, LICENCE, _SOURCE, _REPOSITORY, places=(var.TRAINED_TOKENIZER, *PLACES))

RELEASES: Table = {
    "imagefolder/MSVR10P2-4096": replace(_TOKENIZER, file="MSVR10P2-4096/best_ckpt.pt", published="rFID 0.80"),
    "imagefolder/MSVR10P2-8192": replace(_TOKENIZER, file="MSVR10P2-8192/best_ckpt.pt", published="rFID 0.70"),
    "imagefolder/MSVR10P2-16384": replace(_TOKENIZER, file="MSVR10P2-16384/best_ckpt.pt", published="rFID 0.67"),
    "imagefolder/LAION-MSVR10P2-4096": replace(_TOKENIZER, file="LAION-MSVR10P2-4096/laion.pt"),
    "imagefolder/IMed-MSVR10P2-4096": replace(
        _TOKENIZER, file="IMed-MSVR10P2-4096/IMed361M.pt", remark="trained on medical images"
    ),
    "imagefolder/VP2-4096": replace(_TOKENIZER, file="vq-4096/best_ckpt.pt", published="rFID 0.90"),
    "imagefolder/VP2-16384": replace(_TOKENIZER, file="vq-16384/best_ckpt.pt", published="rFID 0.64"),
    "imagefolder/VAR-d17": Release(
        describe=generator,
        licence=LICENCE,
        source=_SOURCE,
        repository=_REPOSITORY,
        file="VAR-d17-MSVR10P2-4096/ar-ckpt-last.pth",
        tokenizer="imagefolder/MSVR10P2-4096",
        places=(var.TRAINED, *PLACES),
        published="gFID 2.60",
        remark=(
            f"{var.GUIDANCE}; published with a scale of 3.25, top_k 750 and top_p 0.95. The file also holds the "
            "tokenizer, and may be named as tokenizer_file too"
        ),
    ),
}
