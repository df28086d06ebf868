"""Published vision foundation models: a table, and every plain vision transformer of timm."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
from torch import nn

from polytoken.errors import UserError
from polytoken.teachers.efficientnet import EFFICIENTNETS, MEASURES, TRAINS

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
SIGLIP = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # keeps images in [-1, 1] as they are


@dataclass(frozen=True)
class FoundationModel:
    """Settings under which a published model's features are read.

    Args:
        library: the library that builds it.
        model: its name there, with the pretrained tag after the last dot (timm) or slash (open_clip).
        image_size: default side of its input images, in pixels.
        patch_size: side of a patch, in pixels; the largest stride of a convolutional network.
        width: D of its features; of its last block, if ``levels`` differ.
        depth: number of blocks.
        prefix_tokens: class token and registers before the patches; with none, ``cls`` is the mean of the patches.
        normalization: mean and standard deviation of its inputs in [0, 1], per channel.
        final_norm: apply the model's last norm to the output of the last block.
        attention_pooling: it pools its patches by attention, to embeddings that its text tower's are compared with.
        levels: (width, patch_size) of each block of a convolutional network; empty where all blocks are alike.
    """

    library: Literal["timm", "open_clip"]
    model: str
    image_size: int
    patch_size: int
    width: int
    depth: int
    prefix_tokens: int
    normalization: tuple[tuple[float, float, float], tuple[float, float, float]]
    final_norm: bool = True
    attention_pooling: bool = False
    levels: tuple[tuple[int, int], ...] = ()

    def level(self, block: int | None) -> tuple[int, int]:
        """Width and patch size of the features of a block; None is the last."""
        if not self.levels:
            return self.width, self.patch_size
        return self.levels[(self.depth if block is None else block) - 1]


# CLIP is read before its last norm and without projection, as in the released FQGAN. OpenAI's weights need the
# *quickgelu* models: plain GELU loads them without an error, and its features are off by up to 1.3.
FOUNDATION_MODELS = {
    "clip_base_16": FoundationModel(
        "timm", "vit_base_patch16_clip_quickgelu_224.openai", 224, 16, 768, 12, 1, CLIP, final_norm=False
    ),
    "clip_large_14": FoundationModel(
        "timm", "vit_large_patch14_clip_quickgelu_224.openai", 224, 14, 1024, 24, 1, CLIP, final_norm=False
    ),
    "open_clip_base_16": FoundationModel(
        "open_clip", "ViT-B-16-quickgelu/openai", 224, 16, 768, 12, 1, CLIP, final_norm=False
    ),
    "dino_small_16": FoundationModel("timm", "vit_small_patch16_224.dino", 224, 16, 384, 12, 1, IMAGENET),
    "dinov2_small": FoundationModel("timm", "vit_small_patch14_dinov2.lvd142m", 224, 14, 384, 12, 1, IMAGENET),
    "dinov2_base": FoundationModel("timm", "vit_base_patch14_dinov2.lvd142m", 224, 14, 768, 12, 1, IMAGENET),
    "dinov2_base_registers": FoundationModel(
        "timm", "vit_base_patch14_reg4_dinov2.lvd142m", 224, 14, 768, 12, 5, IMAGENET
    ),
    "dinov2_large_registers": FoundationModel(
        "timm", "vit_large_patch14_reg4_dinov2.lvd142m", 336, 14, 1024, 24, 5, IMAGENET
    ),
    "dinov3_large": FoundationModel("timm", "vit_large_patch16_dinov3.lvd1689m", 256, 16, 1024, 24, 5, IMAGENET),
    "siglip2_large_256": FoundationModel(
        "timm", "vit_large_patch16_siglip_256.v2_webli", 256, 16, 1024, 24, 0, SIGLIP, attention_pooling=True
    ),
    "siglip2_large": FoundationModel(
        "timm", "vit_large_patch16_siglip_384.v2_webli", 384, 16, 1024, 24, 0, SIGLIP, attention_pooling=True
    ),
    TRAINS: FoundationModel(
        "timm",
        EFFICIENTNETS[TRAINS].model,
        EFFICIENTNETS[TRAINS].image_size,
        32,
        1280,
        8,
        0,
        SIGLIP,
        final_norm=False,
        levels=((16, 2), (24, 4), (40, 8), (80, 16), (112, 16), (192, 32), (320, 32), (1280, 32)),
    ),
}

TIMM = "timm/"


def published_model(name: str) -> FoundationModel:
    """Settings of a published model: a key of ``FOUNDATION_MODELS``, or ``timm/`` and the name of a model of timm.

    Raises:
        UserError: there is no such model, or it is no vision transformer of square patches and equal blocks.
    """
    if name == MEASURES:
        raise UserError(f"{MEASURES} measures images, so it trains nothing: take {TRAINS}")
    if name in FOUNDATION_MODELS:
        return FOUNDATION_MODELS[name]
    if not name.startswith(TIMM):
        raise UserError(
            f"no teacher is called {name!r}: take stand_in, one of {', '.join(FOUNDATION_MODELS)}, or {TIMM} and the "
            "name of a vision transformer of timm"
        )
    return _model_of_timm(name.removeprefix(TIMM))


@cache
def _model_of_timm(name: str) -> FoundationModel:
    """Settings that timm states, and those of the network itself; no weights are read."""
    import timm
    from timm.layers import PatchEmbed
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer

    if not timm.is_model_pretrained(name):
        raise UserError(f"timm has no pretrained model {name!r}: timm.list_models('vit*', pretrained=True) lists its")
    published: Any = timm.get_pretrained_cfg(name)
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        network: Any = timm.create_model(name, num_classes=0)
    # others begin with convolutions, so that their grid is not that of patches
    plain = isinstance(network, VisionTransformer | Eva) and type(network.patch_embed) is PatchEmbed
    if not plain or network.patch_embed.patch_size[0] != network.patch_embed.patch_size[1]:
        raise UserError(
            f"timm's {name} is a {type(network).__name__}: take a vision transformer whose blocks share one grid of "
            "square patches"
        )
    return FoundationModel(
        library="timm",
        model=name,
        image_size=published.input_size[-1],
        patch_size=network.patch_embed.patch_size[0],
        width=network.embed_dim,
        depth=len(network.blocks),
        prefix_tokens=network.num_prefix_tokens,
        normalization=(tuple(published.mean), tuple(published.std)),
        final_norm=not isinstance(network.norm, nn.Identity),
        attention_pooling=network.attn_pool is not None,
    )


def build_network(model: FoundationModel, image_size: int, pretrained: bool) -> nn.Module:
    """The vision tower of a published model, with the weights of its hub or random ones."""
    if model.library == "open_clip":
        import open_clip

        name, tag = model.model.split("/")
        return open_clip.create_model(
            name,
            pretrained=tag if pretrained else None,
            force_image_size=image_size,
            load_weights=pretrained,
            device=torch.get_default_device(),  # it moves the network, which fails from the meta device to another
        ).visual
    import timm

    return timm.create_model(model.model, pretrained=pretrained, img_size=image_size, num_classes=0)
