from dataclasses import replace

import pytest
import torch

from polytoken.generators import AutoregressiveGenerator, DiffusionTransformer, LinearHead, TrunkConfig
from polytoken.metrics.compute import image_compute
from polytoken.modulated_transformer import DIFFUSION_SIZES
from polytoken.specs import LatentSpec, TokenSpec
from polytoken.transformer import SIZES


def on_meta(trunk: TrunkConfig, codes: int, side: int) -> AutoregressiveGenerator:
    with torch.device("meta"):
        generator = AutoregressiveGenerator(trunk, LinearHead())
        generator.connect(TokenSpec((codes,), ((side, side),)), 10)
    return generator.eval()


def test_a_tiny_model_equals_its_products() -> None:
    width, hidden, codes, positions, depth = 16, 48, 11, 12, 2
    trunk = TrunkConfig(width, depth, 2, ffn_multiple=16)
    with torch.device("meta"):
        generator = AutoregressiveGenerator(trunk, LinearHead())
        generator.connect(TokenSpec((codes,), ((3, 4),)), 5)
    linear = depth * (4 * width * width + 3 * width * hidden) + width * codes
    attention = depth * 2 * positions * positions * width
    full = image_compute(generator.eval(), halve_causal=False)
    assert full.attention == 2 * attention
    assert full.forward == 2 * (positions * linear + attention)
    assert full.training == 3 * full.forward
    half = image_compute(generator)
    assert half.attention == attention
    assert half.forward == full.forward - attention
    assert half.training == 3 * half.forward


def test_counting_needs_no_device_and_leaves_no_gradient() -> None:
    generator = on_meta(TrunkConfig(16, 1, 2, ffn_multiple=16), 7, 2)
    before = image_compute(generator)
    generator = generator.to_empty(device="cpu")
    assert image_compute(generator) == before
    assert all(parameter.grad is None for parameter in generator.parameters())


def test_llamagen_large_has_the_papers_number() -> None:
    """169.65 GFLOP (iFSQ Fig. 4): blocks, half of the attention, and a head of 16,384 codes."""
    found = image_compute(on_meta(SIZES["L"], 16384, 16))
    assert found.forward / 1e9 == pytest.approx(169.65, abs=0.005)
    assert found.training == 3 * found.forward


@pytest.mark.slow
def test_a_large_vocabulary_is_not_counted_twice() -> None:
    """The loss of 83,521 codes is computed in chunks, which would count parts of backward as forward."""
    few, many = (image_compute(on_meta(SIZES["L"], codes, 16)) for codes in (16384, 17**4))
    assert many.forward - few.forward == 2 * 256 * 1024 * (17**4 - 16384)
    assert many.training == 3 * many.forward


@pytest.mark.slow
def test_diffusion_transformer_large_is_near_the_papers_number() -> None:
    """161.04 GFLOP (iFSQ Fig. 4) are the blocks' products of each position; ours adds the other products."""
    width, hidden, channels = 1024, 2730, 16
    blocks = 24 * (256 * (4 * width**2 + 3 * width * hidden) + 2 * 256**2 * width)
    assert 2 * blocks / 1e9 == pytest.approx(161.04, abs=0.005)
    with torch.device("meta"):
        generator = DiffusionTransformer(replace(DIFFUSION_SIZES["L"], patch_size=2))
        generator.connect(LatentSpec(4, (32, 32), (0.0,) * 4, (1.0,) * 4), 1000)
    found = image_compute(generator.eval())
    conditions = 24 * 6 * width**2 + 2 * width**2 + 256 * width + width**2
    assert found.forward == 2 * (blocks + conditions + 2 * 256 * channels * width)
    assert found.forward / 161.04e9 == pytest.approx(1, abs=0.003)
    assert found == image_compute(generator, halve_causal=False)  # attention is not causal
    assert found.training / found.forward == pytest.approx(3, abs=0.001)  # no gradient of the latents
