"""Parameter counts of the papers' generators, exact to the unit, on the meta device."""

from dataclasses import replace

import pytest
import torch

from polytoken.generators import (
    DIFFUSION_SIZES,
    SIZES,
    AutoregressiveHead,
    DiffusionTransformer,
    Head,
    LinearHead,
    TrunkConfig,
)
from polytoken.specs import LatentSpec, TokenSpec
from tests.support.generators import build_generator


def count(
    trunk: TrunkConfig, head: Head, num_sub_codes: int, aggregation: str = "concatenation", codes: int = 16384
) -> int:
    with torch.device("meta"):
        spec = TokenSpec((codes,) * num_sub_codes, ((16, 16),))
        generator = build_generator(spec, 1000, trunk, head, aggregation)
    return sum(parameter.numel() for parameter in generator.parameters())


@pytest.mark.parametrize(
    ("trunk", "expected"),
    [
        (SIZES["B"], 110_888_448),
        (SIZES["L"], 342_910_976),
        (SIZES["XL"], 774_699_520),
        (SIZES["XXL"], 1_410_972_672),
        (SIZES["3B"], 3_096_659_200),
        (TrunkConfig(2560, 48, 40), 3_893_027_840),
        (TrunkConfig(2048, 22, 32), 1_199_616_000),
        (TrunkConfig(4096, 32, 32), 6_614_589_440),
    ],
    ids=["B", "L", "XL", "XXL", "3B", "XXXL", "1B", "7B"],
)
def test_llamagen(trunk: TrunkConfig, expected: int) -> None:
    assert count(trunk, LinearHead(), 1) == expected


@pytest.mark.parametrize(
    ("size", "depth", "num_sub_codes", "expected"),
    [
        ("FAR-Base", 3, 2, 417_104_896),
        ("FAR-Base", 3, 3, 451_707_904),
        ("FAR-Large", 4, 2, 901_195_520),
        ("FAR-Large", 4, 3, 944_776_960),
    ],
)
def test_far(size: str, depth: int, num_sub_codes: int, expected: int) -> None:
    assert count(SIZES[size], AutoregressiveHead(depth), num_sub_codes) == expected


def test_far_with_summed_embeddings_has_the_papers_size() -> None:
    """415M in FQGAN Table 2, which the released code's aggregation layer exceeds."""
    assert count(SIZES["FAR-Base"], AutoregressiveHead(3), 2, "sum") == 415_006_720


@pytest.mark.parametrize(
    ("size", "patch_size", "expected"),
    [
        ("S", 1, 32_965_252),
        ("B", 1, 130_514_692),
        ("L", 1, 458_098_660),
        ("L", 2, 458_123_248),
        ("XL", 1, 675_196_228),
        ("XL", 2, 675_223_888),
    ],
)
def test_diffusion_transformers_of_ifsq(size: str, patch_size: int, expected: int) -> None:
    """The released networks store the absolute positions of their 256 patches with the weights."""
    trunk = replace(DIFFUSION_SIZES[size], patch_size=patch_size)
    side = 16 * patch_size
    with torch.device("meta"):
        generator = DiffusionTransformer(trunk)
        generator.connect(LatentSpec(4, (side, side), (0.0,) * 4, (1.0,) * 4), 1000)
    assert sum(parameter.numel() for parameter in generator.parameters()) + 256 * trunk.dim == expected


@pytest.mark.parametrize(
    ("size", "one_softmax", "two_groups"),
    [
        ("B", 214_010_880, 100_769_280),
        ("L", 480_407_552, 336_234_496),
        ("XL", 946_570_240, 774_873_600),
        ("XXL", 1_617_217_536, 1_419_045_888),
    ],
)
def test_llamagen_on_ifsq_of_4_bits(size: str, one_softmax: int, two_groups: int) -> None:
    """One softmax of 17⁴ codes, or two groups of 17² and the released code's two blocks over them."""
    assert count(SIZES[size], LinearHead(), 1, codes=17**4) == one_softmax
    assert count(SIZES[size], AutoregressiveHead(2), 2, "sum", codes=17**2) == two_groups


@pytest.mark.parametrize(
    ("levels", "channels", "expected"), [(33, 4, 339_511_296), (65, 4, 352_356_352), (5, 8, 337_610_752)]
)
def test_llamagen_on_grouped_codes(levels: int, channels: int, expected: int) -> None:
    assert count(SIZES["L"], AutoregressiveHead(2), 2, "sum", codes=levels ** (channels // 2)) == expected
