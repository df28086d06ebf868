"""Features and pooling equal timm's, for tiny random variants of the classes of the published models."""

from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from polytoken.errors import UserError
from polytoken.frozen import FrozenNetwork
from polytoken.teachers import FOUNDATION_MODELS, Teacher, build_network
from polytoken.teachers.stand_in import SmallVisionTransformer

SIDE = 4  # patches
TINY = {"embed_dim": 16, "depth": 3, "num_heads": 2}


def tiny(name: str, monkeypatch: pytest.MonkeyPatch, **options: object) -> tuple[Teacher, nn.Module]:
    """A teacher with the class and settings of a published model, but small and of random weights; and its network."""
    model = FOUNDATION_MODELS[name]
    torch.manual_seed(0)
    network = timm.create_model(
        model.model, pretrained=False, img_size=SIDE * model.patch_size, num_classes=0, **TINY
    ).eval()
    for parameter in network.parameters():  # norms and layer scales begin as (nearly) nothing
        nn.init.normal_(parameter, std=0.5)
    monkeypatch.setitem(FOUNDATION_MODELS, name, replace(model, width=16, depth=3, image_size=SIDE * model.patch_size))
    teacher = Teacher(name, **options)
    teacher._network = FrozenNetwork(lambda: network)
    return teacher, network


@pytest.mark.parametrize("name", ["siglip2_large", "dinov2_large_registers", "dinov3_large"])
def test_features_equal_those_of_timm(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deep and shallow in one pass: the last block behind the last norm, the first one raw."""
    teacher, network = tiny(name, monkeypatch)
    images = torch.rand(2, 3, teacher.image_size, teacher.image_size) * 2 - 1
    deep, shallow = teacher.features(images, (None, 1))
    inputs, prefix = teacher.transform(images), FOUNDATION_MODELS[name].prefix_tokens
    with torch.no_grad():
        raw, _, _ = network.forward_intermediates(inputs, output_fmt="NCHW", intermediates_only=True)
        *_, normed = network.forward_intermediates(inputs, output_fmt="NCHW", intermediates_only=True, norm=True)
        tokens = network.forward_features(inputs)
    torch.testing.assert_close(deep.patches.permute(0, 3, 1, 2), normed)
    torch.testing.assert_close(deep.patches.flatten(1, 2), tokens[:, prefix:])
    torch.testing.assert_close(shallow.patches.permute(0, 3, 1, 2), raw)
    if prefix:
        torch.testing.assert_close(deep.cls, tokens[:, 0])
    # an earlier block behind the last norm, as a single layer; blocks that are asked for by number stay raw
    layer = Teacher(name, block=1, final_norm=True)
    layer._network = teacher._network
    single, number = layer.features(images, (None, 1))
    with torch.no_grad():
        (first,) = network.forward_intermediates(inputs, [0], output_fmt="NCHW", intermediates_only=True, norm=True)
    torch.testing.assert_close(single.patches.permute(0, 3, 1, 2), first)
    torch.testing.assert_close(number.patches.permute(0, 3, 1, 2), raw)
    assert layer.for_grid((5, 5)).final_norm


def test_pooling_equals_the_head_of_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, network = tiny("siglip2_large", monkeypatch)
    images = torch.rand(2, 3, teacher.image_size, teacher.image_size) * 2 - 1
    teacher.check_pool()
    (deep,) = teacher.features(images)
    with torch.no_grad():
        expected = network.forward_head(network.forward_features(teacher.transform(images)))
    with torch.autocast("cpu", torch.bfloat16):
        pooled = teacher.pool(deep.patches)
    assert pooled.dtype == torch.float32 and not pooled.requires_grad
    torch.testing.assert_close(pooled, expected)


def test_pooling_of_a_stand_in(tmp_path: Path) -> None:
    """By attention as SigLIP; a linear head of a classifier is not part of it."""
    torch.manual_seed(0)
    network = SmallVisionTransformer(16, 4, width=16, depth=2, num_classes=3, pooling="attention").eval()
    network.save(tmp_path / "dual.safetensors")
    teacher = Teacher("stand_in", str(tmp_path / "dual.safetensors"))
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    (deep,) = teacher.features(images)
    assert deep.patches.shape == (2, 4, 4, 16)
    with torch.no_grad():
        expected = network.trunk.forward_head(network.trunk.forward_features(images), pre_logits=True)
        assert network(images).shape == (2, 3)
    torch.testing.assert_close(teacher.pool(deep.patches), expected)


def test_a_model_without_attention_pooling_is_refused(tmp_path: Path) -> None:
    """On the header and the table alone, before weights are read."""
    with pytest.raises(
        UserError, match="dinov2_base has no attention pooling.*take siglip2_large_256, siglip2_large, or a"
    ):
        Teacher("dinov2_base").check_pool()
    SmallVisionTransformer(8, 4, width=8, depth=1, num_heads=1, pooling="mean").save(tmp_path / "mid.safetensors")
    teacher = Teacher("stand_in", str(tmp_path / "mid.safetensors"))
    with pytest.raises(UserError, match=r"stand_in \(.*mid.safetensors\) has no attention pooling"):
        teacher.pool(torch.zeros(1, 2, 2, 8))
    with pytest.raises(UserError, match="gives block 8 before any norm.*set final_norm"):
        Teacher("siglip2_large", block=8).check_pool()
    Teacher("siglip2_large", block=8, final_norm=True).check_pool()
    gap = replace(FOUNDATION_MODELS["siglip2_large"], model="vit_large_patch16_siglip_gap_384.v2_webli")
    with torch.device("meta"):
        assert build_network(gap, 384, pretrained=False).attn_pool is None
