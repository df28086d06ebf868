"""The discriminator on frozen features: a head against loops, groups of any batch, sizes of images, gradients."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from polytoken.discriminators import DinoDiscriminator
from polytoken.discriminators.dino import GroupBatchNorm, _head
from polytoken.errors import UserError
from polytoken.losses import Adversarial, LeCam
from polytoken.teachers import SmallVisionTransformer, Teacher
from tests.polytoken.losses.test_losses import make_step
from tests.support.host_sync import host_syncs

WIDTH = 16


@pytest.fixture
def teacher(tmp_path: Path) -> Teacher:
    torch.manual_seed(0)
    network = SmallVisionTransformer(image_size=16, patch_size=4, width=WIDTH, depth=2, num_heads=2)
    network.save(tmp_path / "high.safetensors")
    return Teacher("stand_in", str(tmp_path / "high.safetensors"))


def made(teacher: Teacher, **settings: Any) -> DinoDiscriminator:
    torch.manual_seed(0)
    return DinoDiscriminator(teacher, **{"blocks": (0, 1, 2)} | settings)


def slow_norm(features: Tensor, norm: GroupBatchNorm, sizes: list[int]) -> Tensor:
    result, start = torch.empty_like(features), 0
    for size in sizes:
        for channel in range(features.shape[1]):
            values = features[start : start + size, channel]
            normal = (values - values.mean()) / (values.var(correction=0) + 1e-5).sqrt()
            result[start : start + size, channel] = normal * norm.weight[channel] + norm.bias[channel]
        start += size
    return result


def slow_convolution(features: Tensor, layer: nn.Conv1d) -> Tensor:
    """Around the circle, with the weight over its largest singular value."""
    raw = layer.parametrizations.weight.original  # type: ignore[union-attr]
    weight = raw / torch.linalg.svdvals(raw.flatten(1))[0]
    kernel, count = weight.shape[2], features.shape[2]
    result = torch.empty(len(features), len(weight), count, dtype=features.dtype)
    for position in range(count):
        seen = [features[:, :, (position + offset - kernel // 2) % count] for offset in range(kernel)]
        result[:, :, position] = sum(one @ weight[:, :, i].T for i, one in enumerate(seen)) + layer.bias
    return result


@pytest.mark.parametrize(
    ("batch", "sizes"), [(1, [1]), (3, [3]), (8, [8]), (13, [7, 6]), (17, [6, 6, 5])], ids=lambda value: str(value)
)
def test_groups_of_any_batch_against_loops(batch: int, sizes: list[int]) -> None:
    torch.manual_seed(0)
    norm, features = GroupBatchNorm(4).double(), torch.randn(batch, 4, 6, dtype=torch.float64)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    expected = slow_norm(features, norm, sizes)
    torch.testing.assert_close(norm(features), expected)
    torch.testing.assert_close(norm.eval()(features), expected)


def test_a_head_against_loops() -> None:
    torch.manual_seed(0)
    head: Any = _head(5, 8).double()
    features = torch.randn(9, 5, 12, dtype=torch.float64)
    for _ in range(300):  # power iteration
        head(features)
    hidden = features
    for index, (convolution, norm, _) in enumerate((head[0], head[1].branch)):
        branch = slow_norm(slow_convolution(hidden, convolution), norm, [5, 4])
        branch = torch.where(branch > 0, branch, 0.2 * branch)
        hidden = branch if index == 0 else (hidden + branch) / 2**0.5
    torch.testing.assert_close(head(features), slow_convolution(hidden, head[2]), rtol=1e-6, atol=1e-6)


def test_each_head_reads_its_block_with_the_class_token_added(teacher: Teacher) -> None:
    discriminator, images = made(teacher), torch.rand(3, 3, 16, 16) * 2 - 1
    network = teacher._network.on(images.device)
    tokens = network._pos_embed(network.patch_embed(images))
    stages = [tokens, network.blocks[0](tokens), network.blocks[1](network.blocks[0](tokens))]
    discriminator.eval()
    parts = [
        head((stage[:, 1:] + stage[:, :1]).transpose(1, 2))[:, 0]
        for head, stage in zip(discriminator.heads, stages, strict=True)
    ]
    logits = discriminator(images)
    assert logits.shape == (3, 3 * 16)
    torch.testing.assert_close(logits, torch.cat(parts, 1), rtol=1e-4, atol=1e-5)


def test_gradients_reach_images_and_heads_and_not_the_frozen_network(teacher: Teacher) -> None:
    discriminator, images = made(teacher), torch.rand(3, 3, 16, 16).requires_grad_()
    discriminator.prepare(images.device)
    discriminator(images).square().mean().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0
    assert all(weight.grad is not None for weight in discriminator.parameters())
    assert all(weight.grad is None for weight in teacher._network.on(images.device).parameters())
    assert all(name.startswith("heads.") for name in discriminator.state_dict())


def test_larger_images_are_cropped_or_reduced_and_smaller_ones_enlarged(teacher: Teacher) -> None:
    images = torch.rand(2, 3, 20, 24)
    torch.testing.assert_close(
        made(teacher, crop=0.0)._resized(images), functional.adaptive_avg_pool2d(images, 16), rtol=0, atol=1e-6
    )
    crops = [images[:, :, i : i + 16, j : j + 16] for i in range(5) for j in range(9)]
    torch.manual_seed(0)
    found = {
        next(i for i, crop in enumerate(crops) if torch.equal(crop, made_crop))
        for made_crop in (DinoDiscriminator(teacher, (1,), crop=1.0)._resized(images) for _ in range(20))
    }
    assert len(found) > 5
    small = torch.rand(2, 3, 8, 8)
    expected = functional.interpolate(small, (16, 16), mode="bicubic")
    assert torch.equal(made(teacher)._resized(small), expected)
    assert made(teacher)._resized(expected) is expected


def test_a_step_is_float32_and_reads_nothing_from_the_device(teacher: Teacher) -> None:
    discriminator, images = made(teacher).eval(), torch.rand(2, 3, 20, 20)
    torch.manual_seed(1)
    expected = discriminator(images)
    torch.manual_seed(1)
    with host_syncs() as counts, torch.autocast("cpu", torch.bfloat16):
        logits = discriminator(images)
    assert not counts
    assert torch.equal(logits, expected)


def test_the_adversarial_block_takes_it(teacher: Teacher) -> None:
    block = Adversarial(made(teacher), lecam=LeCam())
    step = make_step()
    loss, logged = block.discriminator_loss(step)
    assert loss.isfinite() and logged["lecam"] >= 0
    assert torch.autograd.grad(block.generator_loss(step, torch.zeros(())), step.decoded.image)[0].abs().sum() > 0


def test_the_published_size() -> None:
    with torch.device("meta"):
        discriminator = DinoDiscriminator()
    assert sum(weight.numel() for weight in discriminator.parameters()) == 7_386_245
    assert discriminator.teacher.name == "dino_small_16" and discriminator.teacher.image_size == 224


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"blocks": (3,)}, "block 3 of teacher stand_in: it has blocks 0 to 2"),
        ({"blocks": (-1,)}, "block -1 of teacher stand_in"),
        ({"blocks": ()}, r"blocks \[\], crop 0.5 and group_size 8: give a block"),
        ({"crop": 1.5}, r"crop in \[0, 1\]"),
        ({"group_size": 0}, "groups of at least 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], message: str, teacher: Teacher) -> None:
    with pytest.raises(UserError, match=message):
        made(teacher, **settings)
