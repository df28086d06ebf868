"""Sizes of codes and latents, and validation of their containers."""

import math

import pytest
import torch

from polytoken.errors import UserError
from polytoken.specs import Encoding, LatentSpec, Tokens, TokenSpec

TEN_SCALES = tuple((side, side) for side in (1, 2, 3, 4, 5, 6, 8, 10, 13, 16))


def test_token_spec_of_several_scales() -> None:
    spec = TokenSpec((4096, 4096), TEN_SCALES)
    assert spec.num_sub_codes == 2
    assert spec.num_positions == 680
    assert spec.bits_per_image == 680 * 24


def test_lists_are_tuples() -> None:
    """A spec of lists equals that of tuples, and is hashed like it."""
    assert {TokenSpec([8, 4], [[1, 1], [2, 3]])} == {TokenSpec((8, 4), ((1, 1), (2, 3)))}  # type: ignore[arg-type]
    assert {LatentSpec(1, [2, 3], [0.0], [1.0])} == {LatentSpec(1, (2, 3), (0.0,), (1.0,))}  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [((), ((4, 4),)), ((8,), ()), ((), ()), ((8, 0), ((4, 4),)), ((8,), ((4, 0),))])
def test_a_token_spec_has_codebooks_and_scales(wrong: tuple) -> None:
    with pytest.raises(UserError, match="a TokenSpec has codebooks of .*: it has at least one of each"):
        TokenSpec(*wrong)


def test_compression_ratio_of_codebooks() -> None:
    """iFSQ eq. 12: 24 f² / log₂ K; 438.9 for LlamaGen's VQ-16, "about 438" in Fig. 10."""
    spec = TokenSpec((16384,), ((16, 16),))
    assert spec.compression_ratio(256) == pytest.approx(24 * 16**2 / 14)


def test_compression_ratio_of_levels() -> None:
    """iFSQ eq. 13: 24 f² / (d log₂ L), whatever the number of sub-codes."""
    whole = TokenSpec((16**4,), ((32, 32),))
    split = TokenSpec((16**2, 16**2), ((32, 32),))
    assert whole.compression_ratio(256) == split.compression_ratio(256) == pytest.approx(24 * 8**2 / 16)


def test_compression_ratio_of_latents() -> None:
    """iFSQ eq. 11: 3 f² / 2d; the AE of Table 1 has 24."""
    spec = LatentSpec(4, (32, 32), (0.0,) * 4, (1.0,) * 4)
    assert spec.compression_ratio(256) == 24


def test_select_keeps_the_requested_order() -> None:
    spec = TokenSpec((3, 5, 7), ((2, 3),))
    assert spec.select([2, 0]) == TokenSpec((7, 3), ((2, 3),))
    with pytest.raises(ValueError, match="sub-code 3 does not exist"):
        spec.select([3])


def test_latent_spec_rejects_statistics_of_other_channels() -> None:
    with pytest.raises(ValueError, match="4 channels needs as many means"):
        LatentSpec(4, (2, 2), (0.0,), (1.0,))


@pytest.mark.parametrize(("mean", "deviation"), [(math.nan, 1.0), (math.inf, 1.0), (0.0, 0.0), (0.0, math.nan)])
def test_latent_spec_rejects_statistics_that_cannot_normalise(mean: float, deviation: float) -> None:
    with pytest.raises(ValueError, match=rf"channel 1 of the latents has mean {mean} and deviation {deviation}"):
        LatentSpec(2, (2, 2), (0.0, mean), (1.0, deviation))


def test_tokens_are_codes_or_latents() -> None:
    codes, latents = torch.zeros(1, 2, 4, dtype=torch.int64), torch.zeros(1, 4, 2, 2)
    assert Tokens(codes=codes).latents is None
    for wrong in ({}, {"codes": codes, "latents": latents}):
        with pytest.raises(ValueError, match="exactly one"):
            Tokens(**wrong)


def test_rows_of_an_encoding() -> None:
    encoding = Encoding(
        codes=torch.arange(6).view(3, 1, 2),
        quantized=torch.randn(3, 2, 1, 2),
        kept=torch.tensor([True, False, True]),
        losses={"kl": torch.ones(())},
    )
    rows = encoding.rows(torch.tensor([False, True, True]))
    assert rows.codes is not None and rows.codes.flatten().tolist() == [2, 3, 4, 5]
    assert rows.kept is not None and rows.kept.tolist() == [False, True]
    assert rows.losses == {}
