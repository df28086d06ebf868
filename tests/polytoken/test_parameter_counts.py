"""Parameter counts of the papers' networks, exact to the unit, on the meta device."""

import pytest
import torch

from polytoken.discriminators import PatchDiscriminator
from polytoken.losses.predictors import ClassTokenPredictor
from polytoken.quantizers import FactorizedQuantizer, VectorQuantizer
from polytoken.tokenizers import ConvolutionalTokenizer

F16 = (1, 1, 2, 2, 4)
F8 = (1, 2, 2, 4)


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def build(multipliers: tuple[int, ...], num_subspaces: int) -> ConvolutionalTokenizer:
    if num_subspaces == 1:
        return ConvolutionalTokenizer(VectorQuantizer(), channel_multipliers=multipliers)
    quantizer = FactorizedQuantizer(VectorQuantizer(), num_subspaces)
    return ConvolutionalTokenizer(quantizer, channel_multipliers=multipliers, adapter="transformer")


@pytest.mark.parametrize(
    ("multipliers", "num_subspaces", "expected"),
    [
        (F16, 1, 71_883_403),
        (F8, 1, 70_109_835),
        (F16, 2, 111_294_355),
        (F8, 2, 110_307_219),
        (F16, 3, 131_657_883),
        (F8, 3, 131_063_963),
    ],
    ids=["LlamaGen VQ-16", "LlamaGen VQ-8", "dual f16", "dual f8", "triple f16", "triple f8"],
)
def test_tokenizers(multipliers: tuple[int, ...], num_subspaces: int, expected: int) -> None:
    with torch.device("meta"):
        assert count(build(multipliers, num_subspaces)) == expected


def test_patch_discriminator() -> None:
    with torch.device("meta"):
        discriminator = PatchDiscriminator()
        logits = discriminator(torch.empty(1, 3, 256, 256))
    assert count(discriminator) == 2_765_633
    assert logits.shape == (1, 1, 30, 30)


@pytest.mark.parametrize(
    ("multipliers", "widths", "expected"),
    [
        (F16, (1024,), 150_410_131),
        (F8, (1024,), 150_209_427),
        (F16, (384, 768), 159_295_515),
        (F8, (384, 768), 159_586_331),
    ],
    ids=["dual f16", "dual f8", "triple f16", "triple f8"],
)
def test_tokenizers_with_predictor_heads(multipliers: tuple[int, ...], widths: tuple[int, ...], expected: int) -> None:
    side = 256 // 2 ** (len(multipliers) - 1)
    with torch.device("meta"):
        tokenizer = build(multipliers, 1 + len(widths))
        heads = [ClassTokenPredictor(8, width, (side, side)) for width in widths]
    assert count(tokenizer) + sum(count(head) for head in heads) == expected
