"""Multi-scale residual quantization against loops over scales and positions in float64."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from polytoken.errors import UserError
from polytoken.quantizers import FactorizedQuantizer, MultiScaleQuantizer
from polytoken.quantizers.multiscale import IMAGEFOLDER_SCALES, shared_convolutions
from tests.support.host_sync import host_syncs

SCALES = (1, 2, 2, 3, 5)
GRID = (5, 5)


def quantizer(**settings: object) -> MultiScaleQuantizer:
    torch.manual_seed(0)
    made = MultiScaleQuantizer(**{"scales": SCALES, "codebook_size": 24, "code_dim": 6, **settings})  # type: ignore[arg-type]
    torch.nn.init.normal_(made.embedding.weight, std=0.7)
    return made


def features(batch: int = 3) -> Tensor:
    return torch.randn(batch, 6, *GRID, generator=torch.Generator().manual_seed(1))


def by_loops(made: MultiScaleQuantizer, image: Tensor) -> tuple[list[int], list[Tensor]]:
    """Codes and sums after each scale of one feature map (d, K, K), in float64."""
    codebook = made.embedding.weight.detach().double()
    rest, total = image.double().clone(), torch.zeros_like(image, dtype=torch.float64)
    codes, sums = [], []
    for scale, side in enumerate(made.sides):
        small = functional.adaptive_avg_pool2d(rest, side)
        chosen = torch.zeros(len(small), side, side, dtype=torch.float64)
        for row in range(side):
            for column in range(side):
                vector = small[:, row, column]
                if made.normalize:
                    scores = [vector @ code / (vector.norm() * code.norm()) for code in codebook]
                else:
                    scores = [-(vector - code).square().sum() for code in codebook]
                codes.append(max(range(len(scores)), key=lambda index: scores[index].item()))
                chosen[:, row, column] = codebook[codes[-1]]
        large = functional.interpolate(chosen[None], size=GRID, mode="bicubic") if side != 5 else chosen[None]
        convolution = made.convolutions[made.convolution_of[scale]]
        weight, bias = convolution.weight.detach().double(), convolution.bias.detach().double()  # type: ignore[union-attr]
        added = made.blend * functional.conv2d(large, weight, bias, padding=1)[0] + (1 - made.blend) * large[0]
        total, rest = total + added, rest - added
        sums.append(total)
    return codes, sums


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("count", [1, 3, 5])
def test_codes_sums_and_losses_equal_loops(normalize: bool, count: int) -> None:
    made, images = quantizer(normalize=normalize, num_convolutions=count, blend=0.3), features()
    encoding = made(images)
    loops = [by_loops(made, image) for image in images]
    assert encoding.codes is not None
    assert encoding.codes.tolist() == [[codes] for codes, _ in loops]
    expected = torch.stack([sums[-1] for _, sums in loops])
    torch.testing.assert_close(encoding.quantized.double(), expected, rtol=0, atol=1e-5)
    for scale, found in enumerate(made.partial_sums(encoding.codes, GRID)):
        expected = torch.stack([sums[scale] for _, sums in loops])
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)
    pairs = ((image, one) for image, (_, sums) in zip(images, loops, strict=True) for one in sums)
    error = torch.stack([(one - image).square().mean() for image, one in pairs])
    assert encoding.losses["codebook"].item() == pytest.approx(error.mean().item(), rel=1e-5)
    assert encoding.losses["commitment"].item() == pytest.approx(0.25 * error.mean().item(), rel=1e-5)


def test_the_released_commitment_is_a_sum_over_scales() -> None:
    mean, total = (quantizer(commitment_over_scales=rule)(features()).losses for rule in ("mean", "sum"))
    assert total["commitment"].item() == pytest.approx(len(SCALES) * mean["commitment"].item())
    assert total["codebook"].item() == mean["codebook"].item()


def test_codes_decode_to_the_same_sum_under_autocast() -> None:
    made = quantizer().eval()
    encoding = made(features())
    with torch.autocast("cpu", torch.bfloat16):
        again = made(features())
        decoded = made.embed_codes(again.codes, GRID)
    assert torch.equal(again.codes, encoding.codes) and torch.equal(again.quantized, encoding.quantized)
    torch.testing.assert_close(decoded, encoding.quantized, rtol=0, atol=1e-5)
    assert encoding.losses == {} and encoding.kept is None


def test_gradients_pass_straight_through_and_reach_codes_and_convolutions() -> None:
    made, images = quantizer(), features().requires_grad_()
    weights = torch.randn(3, 6, *GRID)
    encoding = made(images)
    (encoding.quantized * weights).sum().backward()
    assert torch.equal(images.grad, weights)
    assert made.embedding.weight.grad is None
    encoding = made(images)
    encoding.losses["codebook"].backward()
    assert made.embedding.weight.grad is not None and all(part.weight.grad is not None for part in made.convolutions)  # type: ignore[union-attr]


def test_dropped_scales_leave_sum_and_losses() -> None:
    made, images = quantizer(), features()
    depths = torch.tensor([5, 2, 3])
    encoding = made(images, depths)
    assert encoding.kept is not None and encoding.kept.tolist() == [True, False, False]
    whole = made(images)
    assert torch.equal(encoding.codes, whole.codes), "codes are of all scales"
    sums = [by_loops(made, image)[1] for image in images]
    expected = torch.stack([parts[depth - 1] for parts, depth in zip(sums, depths.tolist(), strict=True)])
    torch.testing.assert_close(encoding.quantized.double(), expected, rtol=0, atol=1e-5)
    scales = []
    for scale in range(len(SCALES)):
        kept = [(sums[i][scale] - images[i]).square().mean() for i in range(3) if scale < depths[i]]
        scales.append(torch.stack(kept).mean())
    assert encoding.losses["codebook"].item() == pytest.approx(torch.stack(scales).mean().item(), rel=1e-5)


def test_dropout_draws_its_share_and_never_the_first_scales() -> None:
    made = quantizer(dropout=0.3, dropout_start=2)
    depths = made.depths(20_000, torch.device("cpu"))
    assert depths is not None
    counts = torch.bincount(depths, minlength=6) / len(depths)
    assert counts[:2].sum() == 0
    # of the 30 % drawn, a quarter draws all five scales
    torch.testing.assert_close(counts[2:], torch.tensor([0.075, 0.075, 0.075, 0.775]), rtol=0, atol=0.01)
    assert made.eval().depths(4, torch.device("cpu")) is None


def test_a_step_with_dropout_reads_nothing_from_the_device() -> None:
    made, images = quantizer(dropout=0.5, dropout_start=2), features().requires_grad_()
    with host_syncs() as counts:
        encoding = made(images)
        (encoding.quantized.sum() + sum(encoding.losses.values())).backward()
    assert not counts


def test_branches_share_the_draw_and_not_the_codes() -> None:
    made = FactorizedQuantizer(quantizer(dropout=1.0, dropout_start=1), 2)
    torch.manual_seed(0)
    images = torch.randn(16, 12, *GRID)
    encoding = made(images)
    assert encoding.codes is not None and encoding.codes.shape == (16, 2, sum(side**2 for side in SCALES))
    assert encoding.kept is not None and 0 < encoding.kept.sum() < 16
    torch.manual_seed(0)
    torch.randn(16, 12, *GRID)
    depths = made.branches[0].depths(16, images.device)  # type: ignore[operator]
    halves = zip(made.branches, images.chunk(2, dim=1), strict=True)
    expected = [branch(half, depths).quantized for branch, half in halves]
    assert torch.equal(encoding.quantized, torch.cat(expected, dim=1))
    assert not torch.equal(made.branches[0].embedding.weight, made.branches[1].embedding.weight)


@pytest.mark.parametrize(
    ("scales", "count", "expected"),
    [
        (10, 4, (0, 0, 1, 1, 1, 2, 2, 3, 3, 3)),
        (12, 4, (0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3)),
        (9, 4, (0, 0, 1, 1, 2, 2, 2, 3, 3)),
        (3, 1, (0, 0, 0)),
        (1, 1, (0,)),
    ],
)
def test_scales_share_convolutions_by_nearness(scales: int, count: int, expected: tuple[int, ...]) -> None:
    assert shared_convolutions(scales, count) == expected


def test_the_published_scales_have_286_codes() -> None:
    grids = MultiScaleQuantizer().scales((11, 11))
    ends = [sum(height * width for height, width in grids[: n + 1]) for n in range(len(grids))]
    assert ends == [1, 2, 6, 15, 24, 40, 65, 101, 165, 286] and grids[-1] == (11, 11)
    assert tuple(side for side, _ in grids) == IMAGEFOLDER_SCALES


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"scales": ()}, "scales is empty; it needs at least one value"),
        ({"scales": (1, 3, 2)}, r"scales are \[1, 3, 2\]: give sides of grids from coarse to fine"),
        ({"dropout": 0.1, "dropout_start": 6}, "dropout_start is 6: 5 scales keep the first 1 to 5"),
        ({"dropout": 0.1, "dropout_start": 0}, "dropout_start is 0: 5 scales keep the first 1 to 5"),
        ({"num_convolutions": 0}, "num_convolutions is 0; it must be at least 1"),
        ({"codebook_size": 0}, "codebook_size is 0; it must be from 1"),
        ({"code_dim": -1}, "code_dim is -1; it must be at least 1"),
        ({"dropout": 1.5}, "dropout is 1.5; it must be from 0 to 1"),
        ({"commitment_over_scales": "max"}, "commitment_over_scales is 'max'; it must be mean or sum"),
    ],
)
def test_wrong_settings_are_refused(settings: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        quantizer(**settings)


def test_defaults_suit_fewer_scales() -> None:
    made = MultiScaleQuantizer((1, 2))
    assert len(made.convolutions) == 2 and made.convolution_of == (0, 1)


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [
        ((1, 2, 43), "expected 1 sub-codes per position, got 2"),
        ((1, 1, 7), r"got codes of 7 positions, and scales of \[1, 2, 2, 3, 5\] end after \[1, 5, 9, 18, 43\]"),
        ((1, 1, 44), "got codes of 44 positions"),
    ],
)
def test_partial_sums_of_codes_of_another_shape_are_refused(shape: tuple[int, ...], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        list(quantizer().partial_sums(torch.zeros(shape, dtype=torch.int64), (5, 5)))


def test_partial_sums_of_branches_check_the_number_of_sub_codes() -> None:
    with pytest.raises(UserError, match="expected 2 sub-codes per position, got 1"):
        list(FactorizedQuantizer(quantizer(), 2).partial_sums(torch.zeros(1, 1, 43, dtype=torch.int64), (5, 5)))


def test_features_of_another_grid_are_refused() -> None:
    with pytest.raises(UserError, match="scales end at 5 × 5 and the features have a grid of 4 × 4"):
        quantizer()(torch.randn(1, 6, 4, 4))
    with pytest.raises(UserError, match="has 43 positions, got codes of 42"):
        quantizer().embed_codes(torch.zeros(1, 1, 42, dtype=torch.int64), GRID)
