import math

import pytest
import torch

from polytoken.quantizers import FiniteScalarQuantizer
from polytoken.quantizers.finite_scalar import bound, digits_to_vectors, vectors_to_digits


def build(**changes) -> FiniteScalarQuantizer:
    torch.manual_seed(0)
    return FiniteScalarQuantizer(**changes)


def normal_quantiles(count: int = 500_000) -> torch.Tensor:
    """Evenly spaced quantiles (count,) of N(0, 1)."""
    return torch.special.ndtri((torch.arange(count, dtype=torch.float64) + 0.5) / count)


def test_bound_is_a_scaled_sigmoid_and_tanh_at_two() -> None:
    latents = torch.linspace(-6, 6, 101, dtype=torch.float64)
    assert torch.allclose(bound(latents, 1.6), 2 * torch.sigmoid(1.6 * latents) - 1, atol=1e-12)
    assert torch.equal(bound(latents, 2.0), torch.tanh(latents))


@pytest.mark.parametrize("levels", range(2, 18))
@pytest.mark.parametrize("cells", ["rounding", "equal"])
def test_exactly_the_levels_are_reached_and_symmetric(levels: int, cells: str) -> None:
    sizes = torch.tensor([levels])
    line = torch.linspace(-1, 1, 100_004)[:, None]  # a prime number of steps: none on an edge, nor on 0
    digits = vectors_to_digits(line, sizes, cells)
    assert digits.unique().tolist() == list(range(levels))
    assert torch.equal(digits, levels - 1 - digits.flip(0))
    values = digits_to_vectors(torch.arange(levels)[:, None], sizes, cells)
    assert torch.equal(values, -values.flip(0))
    assert (0.0 in values) == (levels % 2 == 1)
    assert torch.equal(vectors_to_digits(values, sizes, cells), torch.arange(levels)[:, None])


@pytest.mark.parametrize("cells", ["rounding", "equal"])
def test_cells_have_the_stated_widths_and_hold_their_nearest_points(cells: str) -> None:
    sizes = torch.tensor([5])
    line = torch.linspace(-1, 1, 400_001, dtype=torch.float64)[:, None]
    digits = vectors_to_digits(line, sizes, cells)
    widths = 2 * torch.bincount(digits.flatten()).double() / len(line)
    expected = [0.25, 0.5, 0.5, 0.5, 0.25] if cells == "rounding" else [0.4] * 5
    assert widths.tolist() == pytest.approx(expected, abs=1e-4)
    values = digits_to_vectors(torch.arange(5)[:, None], sizes, cells)
    assert values.flatten().tolist() == pytest.approx(
        [-1, -0.5, 0, 0.5, 1] if cells == "rounding" else [-0.8, -0.4, 0, 0.4, 0.8]
    )
    nearest = (line - values.T.double()).abs().argmin(1, keepdim=True)
    assert (nearest != digits).sum() <= 4  # ties, one at an edge


def released_fsq(latents: torch.Tensor, levels: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Digits and vectors of FSQ, channel by channel in float64 (arXiv 2309.15505, appendix A)."""
    digits, vectors = [], []
    for channel, count in zip(latents.unbind(-1), levels, strict=True):
        reach, offset = (count - 1) * 1.001 / 2, 0.0 if count % 2 else 0.5
        bounded = torch.tanh(channel + math.atanh(offset / reach)) * reach - offset
        digits.append(bounded.round() + count // 2)
        vectors.append(bounded.round() / (count // 2))
    return torch.stack(digits, -1), torch.stack(vectors, -1)


def test_offset_cells_are_those_of_the_first_fsq() -> None:
    levels = [8, 5, 6, 2, 17]
    latents = 2 * torch.randn(1, 5, 40, 50, generator=torch.Generator().manual_seed(0))
    quantizer = build(levels=levels, alpha=2.0, cells="offset", num_sub_codes=5)
    encoding = quantizer(latents)
    rows = latents[0].flatten(1).T.double()
    digits, vectors = released_fsq(rows, levels)
    assert (encoding.codes[0].T != digits).float().mean() < 1e-3, "float32 against float64 at an edge"
    expected = quantizer.embed_codes(encoding.codes, (40, 50))
    torch.testing.assert_close(encoding.quantized, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(quantizer.snap(expected), expected, rtol=0, atol=1e-6)
    assert (expected[0].flatten(1).T - vectors).abs().max(1).values.gt(1e-6).float().mean() < 1e-3
    assert [channel.unique().numel() for channel in encoding.codes[0]] == levels
    assert quantizer(torch.zeros(1, 5, 1, 1)).quantized.abs().max() == 0, "zero stays zero for even levels too"


def test_odd_levels_follow_algorithm_1() -> None:
    """round(h f) / h, and the digit round(h f) + h, written as in the paper."""
    half_width = torch.tensor([1.0, 2.0, 4.0, 8.0])
    bounded = bound(torch.randn(1000, 4, generator=torch.Generator().manual_seed(0)), 1.6)
    rounded = torch.round(bounded * half_width)
    sizes = torch.tensor([3, 5, 9, 17])
    digits = vectors_to_digits(bounded, sizes)
    assert torch.equal(digits, (rounded + half_width).long())
    assert torch.allclose(digits_to_vectors(digits, sizes), rounded / half_width)


@pytest.mark.parametrize("cells", ["rounding", "equal"])
@pytest.mark.parametrize("order", ["big_endian", "little_endian"])
@pytest.mark.parametrize("num_sub_codes", [1, 2, 4])
def test_codes_and_vectors_are_inverse(num_sub_codes: int, order: str, cells: str) -> None:
    quantizer = build(levels=[3, 4, 5, 2], num_sub_codes=num_sub_codes, order=order, cells=cells).eval()
    encoding = quantizer(3 * torch.randn(2, 4, 4, 3))
    assert encoding.codes.shape == (2, num_sub_codes, 12)
    assert encoding.codes.dtype == torch.int64
    assert quantizer.codebook_sizes == {1: (120,), 2: (12, 10), 4: (3, 4, 5, 2)}[num_sub_codes]
    for sub_codes, size in zip(encoding.codes.unbind(1), quantizer.codebook_sizes, strict=True):
        assert 0 <= sub_codes.min() and sub_codes.max() < size
    assert torch.allclose(quantizer.embed_codes(encoding.codes, (4, 3)), encoding.quantized, atol=1e-6)
    width = 4 // num_sub_codes
    parts = (encoding.subspaces, encoding.latents)
    assert all([part.shape for part in kind] == [(2, width, 4, 3)] * num_sub_codes for kind in parts)
    assert torch.equal(torch.cat(encoding.subspaces, 1), encoding.quantized)
    assert quantizer.subspace_channels == (width,) * num_sub_codes and quantizer.out_channels == 4
    assert encoding.losses == {} and encoding.code_vectors == ()


def test_a_sub_code_covers_its_channels_in_row_major_order() -> None:
    quantizer = build(levels=[5, 5, 5, 5], num_sub_codes=2).eval()
    encoding = quantizer(3 * torch.randn(1, 4, 2, 3))
    digits = vectors_to_digits(torch.cat(encoding.latents, 1).permute(0, 2, 3, 1), torch.tensor([5] * 4))
    assert torch.equal(encoding.codes[0, 0], (5 * digits[..., 0] + digits[..., 1]).flatten())
    assert torch.equal(encoding.codes[0, 1], (5 * digits[..., 2] + digits[..., 3]).flatten())


@pytest.mark.parametrize("cells", ["rounding", "equal"])
def test_gradient_goes_straight_through_the_rounding(cells: str) -> None:
    quantizer = build(cells=cells, alpha=1.6)
    features = torch.randn(1, 4, 2, 2, requires_grad=True)
    weights = torch.randn_like(features)
    (expected,) = torch.autograd.grad((weights * bound(features, 1.6)).sum(), features)
    (got,) = torch.autograd.grad((weights * quantizer(features).quantized).sum(), features)
    assert got.abs().sum() > 0
    assert torch.allclose(got, expected, atol=1e-6)


def test_bounds_and_rounds_in_float32_under_autocast() -> None:
    """bfloat16 has 8 bits for the 17 levels and would change codes."""
    quantizer = build().eval()
    latents = torch.randn(1, 4, 64, 64)
    expected = quantizer(latents)
    with torch.autocast("cpu", torch.bfloat16):
        encoding = quantizer(latents)
        from_half = quantizer(latents.bfloat16())
    assert encoding.quantized.dtype == from_half.quantized.dtype == torch.float32
    assert torch.equal(encoding.codes, expected.codes)
    assert torch.equal(from_half.codes, quantizer(latents.bfloat16().float()).codes)


@pytest.mark.parametrize(("levels", "share"), [(17, 0.027), (257, 0.135)])
def test_bounding_in_bfloat16_would_change_levels(levels: int, share: float) -> None:
    """The reason for float32; docs/finite_scalar.md has the numbers."""
    latents, sizes = torch.randn(500_000, 1, generator=torch.Generator().manual_seed(0)), torch.tensor([levels])
    coarse = 2 * torch.sigmoid(1.6 * latents.bfloat16()) - 1
    moved = vectors_to_digits(bound(latents, 1.6), sizes) != vectors_to_digits(coarse.float(), sizes)
    assert moved.double().mean().item() == pytest.approx(share, abs=0.001)


STANDARD_NORMAL = normal_quantiles()[:, None]


@pytest.mark.parametrize(
    ("levels", "alpha", "std"), [(5, 1.6, 0.596), (9, 1.6, 0.5685), (17, 1.6, 0.5625), (17, 2.0, 0.630)]
)
def test_spread_of_the_vectors_of_a_standard_normal(levels: int, alpha: float, std: float) -> None:
    digits = vectors_to_digits(bound(STANDARD_NORMAL, alpha), torch.tensor([levels]))
    assert digits_to_vectors(digits, torch.tensor([levels])).double().std().item() == pytest.approx(std, abs=5e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"levels": [17] * 5}, r"sub-code of 1,419,857 values.*131,072.*raise num_sub_codes"),
        ({"levels": [5, 5, 5], "num_sub_codes": 2}, r"num_sub_codes=2 does not divide the 3 channels.*one of \[1, 3\]"),
        ({"levels": [5], "num_sub_codes": 0}, "num_sub_codes=0 does not divide"),
        ({"levels": [5, 1]}, r"at least 2 levels.*\[5, 1\]"),
        ({"levels": []}, "levels must name at least 2 levels"),
        ({"alpha": 0.0}, "alpha is 0.0; it must be above 0"),
    ],
)
def test_invalid_arguments_are_rejected_with_a_remedy(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**changes)


def test_several_sub_codes_allow_more_channels_than_one() -> None:
    quantizer = build(levels=[17] * 6, num_sub_codes=3)
    assert quantizer.codebook_sizes == (289, 289, 289)
    assert math.prod(quantizer.codebook_sizes) == 17**6


def test_wrong_number_of_sub_codes_is_rejected() -> None:
    with pytest.raises(ValueError, match="expected 2 sub-codes per position, got 3"):
        build(num_sub_codes=2).embed_codes(torch.zeros(1, 3, 4, dtype=torch.int64), (2, 2))


def test_levels_are_not_in_a_checkpoint() -> None:
    assert not build().state_dict()
