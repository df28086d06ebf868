"""Checkpoints of LightningDiT (arXiv 2501.01423): the tokenizer VA-VAE and diffusion transformers; MIT-licensed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from polytoken.errors import UserError
from polytoken.positions import position_table, rotary_table
from polytoken.pretrained.released.convolutional import TAMING, describe
from polytoken.pretrained.released.layout import Joined, Layout, Network, Permuted, State, numbered, size
from polytoken.pretrained.released.release import MIT, Companion, Release, Table
from polytoken.specs import LatentSpec

STATISTICS = "latents_stats.pt"
IN_A_BLOCK = {
    "norm1": "attention_norm",
    "norm2": "ffn_norm",
    "attn.qkv": "attention.wqkv",
    "attn.q_norm": "attention.query_norm",
    "attn.k_norm": "attention.key_norm",
    "attn.proj": "attention.wo",
    "mlp.w3": "feed_forward.w2",
    "adaLN_modulation.1": "modulation",
}
TABLE_TOLERANCE = 1e-4  # of float32 sines of angles up to 100


def tokenizer(state: State, image_size: int) -> Network:
    """Describe a VA-VAE (section 3): LDM's autoencoder with a diagonal Gaussian, whose mean its codes are here."""
    quantizer = {
        "class_path": "polytoken.quantizers.ContinuousBottleneck",
        "init_args": {"code_dim": size(state, "post_quant_conv.weight", 1), "kl_weight": 1e-6},
    }
    for_training = ("foundation_model.*", "linear_proj.*", "loss.*")
    return describe(state, TAMING, image_size, quantizer, dropped=for_training)


def generator(state: State, image_size: int) -> Network:  # noqa: ARG001 - stored positions fix the grid
    """Describe a LightningDiT, for latents of the mean and deviation in ``latents_stats.pt``."""
    for name in ("mean", "std"):
        size(state, f"{STATISTICS}:{name}")  # raises if there is none
    mean, deviation = (state[f"{STATISTICS}:{name}"].flatten().tolist() for name in ("mean", "std"))
    return transformer(state, mean, deviation)


def transformer(state: State, mean: Sequence[float], deviation: Sequence[float]) -> Network:
    """Describe a diffusion transformer of LightningDiT's kind.

    Args:
        state: its weights.
        mean: of each channel of the latents that it models.
        deviation: of each channel, by which the released code divides them.

    Raises:
        UserError: if the weights are of another architecture, or the stored positions are others than here.
    """
    dim, depth = size(state, "x_embedder.proj.weight"), numbered(state, "blocks.")
    channels, patch_size = size(state, "x_embedder.proj.weight", 1), size(state, "x_embedder.proj.weight", 2)
    side, head_dim = math.isqrt(size(state, "pos_embed", 1)), size(state, "feat_rope.freqs_cos", 1)
    _check_positions(state, side, dim, head_dim)
    return Network(
        section={
            "class_path": "polytoken.generators.DiffusionTransformer",
            "init_args": {
                "trunk": {
                    "dim": dim,
                    "depth": depth,
                    "num_heads": dim // head_dim,
                    "patch_size": patch_size,
                    "qk_norm": "blocks.0.attn.q_norm.weight" in state,
                },
            },
        },
        layout=Layout(
            pairs=(
                ("x_embedder.proj", "patch_embedding"),
                ("t_embedder.mlp.0", "time_embedding.first"),
                ("t_embedder.mlp.2", "time_embedding.second"),
                ("y_embedder.embedding_table", "class_embedding"),
                *(
                    (f"blocks.{block}.{released}", f"trunk.blocks.{block}.{ours}")
                    for block in range(depth)
                    for released, ours in IN_A_BLOCK.items()
                ),
                ("final_layer.norm_final", "output.norm"),
                ("final_layer.adaLN_modulation.1", "output.modulation"),
                ("final_layer.linear", "output.output"),
            ),
            joined=tuple(_gate_and_value(block, kind) for block in range(depth) for kind in ("weight", "bias")),
            permuted=(Permuted("x_embedder.proj.weight", "patch_embedding.weight", (0, 2, 3, 1)),),
            dropped=("pos_embed", "feat_rope.*", "projectors.*", f"{STATISTICS}:*"),
        ),
        latents=LatentSpec(channels, (side * patch_size, side * patch_size), tuple(mean), tuple(deviation)),
    )


def _gate_and_value(block: int, kind: str) -> Joined:
    ours = (f"trunk.blocks.{block}.feed_forward.{name}.{kind}" for name in ("w1", "w3"))
    return Joined((f"blocks.{block}.mlp.w12.{kind}",), tuple(ours))


def _check_positions(state: State, side: int, dim: int, head_dim: int) -> None:
    """Raise UserError unless the stored tables, which are dropped, are those that the network here computes."""
    cpu = torch.device("cpu")
    cosine, sine = rotary_table(((side, side),), head_dim, None, cpu).repeat_interleave(2, dim=1).unbind(2)
    tables = {
        "pos_embed": position_table((side, side), dim, cpu),
        "feat_rope.freqs_cos": cosine,
        "feat_rope.freqs_sin": sine,
    }
    for name, table in tables.items():
        if not _equal(state[name].squeeze(0), table):
            raise UserError(f"the positions {name} in the file are not those of a {side} × {side} grid")


def _equal(stored: Tensor, table: Tensor) -> bool:
    tolerance = max(TABLE_TOLERANCE, torch.finfo(stored.dtype).eps)
    return stored.shape == table.shape and torch.allclose(stored.float(), table, rtol=0, atol=tolerance)


_SOURCE = "arXiv 2501.01423, hustvl/LightningDiT"
_VAVAE = "hustvl/vavae-imagenet256-f16d32-dinov2"


def _transformer(epochs: int, guidance: float, start: float, published: str) -> Release:
    name = f"lightningdit-xl-imagenet256-{epochs}ep"
    return Release(
        generator,
        MIT,
        _SOURCE,
        f"hustvl/{name}",
        f"{name}.pt",
        tokenizer="lightningdit/vavae_f16d32",
        companion=Companion(_VAVAE, STATISTICS),
        published=published,
        remark=f"the authors' sampler: guidance {guidance} of 3 channels (guided_channels) in the interval "
        f"[{start}, 1], shift 0.3, 249 steps of Euler's method",
    )


RELEASES: Table = {
    "lightningdit/vavae_f16d32": Release(
        tokenizer,
        MIT,
        _SOURCE,
        _VAVAE,
        f"{_VAVAE.split('/')[1]}.pt",
        published="rFID 0.28",
        remark="latents are means; the authors draw them from the posterior",
    ),
    "lightningdit/xl_64ep": _transformer(64, 10.0, 0.11, "gFID 2.11, without guidance 5.14"),
    "lightningdit/xl_800ep": _transformer(800, 6.7, 0.125, "gFID 1.35, without guidance 2.17"),
}
