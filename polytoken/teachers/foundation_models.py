"""Table of published vision foundation models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

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
        patch_size: side of a patch, in pixels.
        width: D of its features.
        depth: number of blocks.
        prefix_tokens: class token and registers before the patches; with none, ``cls`` is the mean of the patches.
        normalization: mean and standard deviation of its inputs in [0, 1], per channel.
        final_norm: apply the model's last norm to the output of the last block.
        attention_pooling: it pools its patches by attention, to embeddings that its text tower's are compared with.
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
}


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
