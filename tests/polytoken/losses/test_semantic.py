"""The semantic contrast against a loop; dropped samples, projections, several ranks."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from polytoken.errors import UserError
from polytoken.losses import SemanticContrast, TokenizerStep
from polytoken.losses.semantic import symmetric_contrast
from polytoken.quantizers import FactorizedQuantizer, MultiScaleQuantizer
from polytoken.specs import Decoded, Encoding
from polytoken.teachers import SmallVisionTransformer, Teacher, TeacherFeatures
from polytoken.tokenizers import FoldedTokenizer, VisionTransformerConfig
from tests.support.host_sync import host_syncs
from tests.support.ranks import run_on_ranks
from tests.support.tokenizers import tiny_tokenizer

WIDTH, CHANNELS = 16, 4
KEPT = torch.tensor([True, False, True, True, True, True])


def teachers(path: Path) -> dict[str, Teacher]:
    SmallVisionTransformer(image_size=16, patch_size=8, width=WIDTH, depth=1, num_heads=2).save(
        path / "high.safetensors"
    )
    return {"high": Teacher("stand_in", str(path / "high.safetensors"))}


def folded(branches: int = 2, dim: int = WIDTH) -> FoldedTokenizer:
    torch.manual_seed(0)
    branch = MultiScaleQuantizer((1, 2), codebook_size=16, code_dim=CHANNELS, num_convolutions=1, dropout_start=1)
    transformer = VisionTransformerConfig(patch_size=8, dim=dim, depth=1, num_heads=2)
    return FoldedTokenizer(FactorizedQuantizer(branch, branches), grid_size=2, image_size=16, transformer=transformer)


def step_of(subspaces: tuple[Tensor, ...], cls: Tensor, kept: Tensor | None = None) -> TokenizerStep:
    images = torch.empty(len(cls), 3, 16, 16)
    encoding = Encoding(None, torch.cat([one.detach() for one in subspaces], 1), subspaces=subspaces, kept=kept)
    features = {"high": TeacherFeatures(cls, torch.empty(len(cls), 2, 2, WIDTH))}
    return TokenizerStep(images, Decoded(images), encoding, torch.nn.Parameter(torch.ones(1)), 0, features)


def slow_contrast(features: Tensor, targets: Tensor, kept: Tensor, temperature: float, normalize: bool) -> float:
    features, rows = features.detach(), [i for i in range(len(features)) if kept[i]]

    def similarity(i: int, j: int) -> float:
        product = float(features[i] @ targets[j])
        return (product / float(features[i].norm() * targets[j].norm()) if normalize else product) / temperature

    total = 0.0
    for i in rows:
        total -= similarity(i, i) - math.log(sum(math.exp(similarity(i, j)) for j in rows))
        total -= similarity(i, i) - math.log(sum(math.exp(similarity(j, i)) for j in rows))
    return total / (2 * len(rows))


@pytest.mark.parametrize(("temperature", "normalize"), [(0.2, True), (1.5, False)])
def test_against_a_loop_over_kept_samples(temperature: float, normalize: bool) -> None:
    torch.manual_seed(0)
    features, targets = torch.randn(2, 6, 8, dtype=torch.float64)
    features.requires_grad_()
    loss = symmetric_contrast(features, targets, KEPT, temperature, normalize)
    assert loss.item() == pytest.approx(slow_contrast(features, targets, KEPT, temperature, normalize), rel=1e-12)
    (gradient,) = torch.autograd.grad(loss, features)
    alone = symmetric_contrast(features[KEPT], targets[KEPT], KEPT[KEPT], temperature, normalize)
    (expected,) = torch.autograd.grad(alone, features)
    torch.testing.assert_close(gradient, expected)
    assert gradient[1].abs().sum() == 0


@pytest.mark.parametrize("count", [0, 1])
def test_without_two_kept_samples_loss_and_gradient_are_zero(count: int) -> None:
    features, targets = torch.randn(2, 3, 8)
    features.requires_grad_()
    loss = symmetric_contrast(features, targets, torch.arange(3) < count, 0.1, True)
    loss.backward()
    assert loss.item() == 0 and features.grad is not None and torch.equal(features.grad, torch.zeros(3, 8))


def test_the_term_contrasts_the_mean_of_the_last_subspace_in_float32(tmp_path: Path) -> None:
    term = SemanticContrast("high")
    term.connect(folded(), teachers(tmp_path))
    detail, semantic = torch.randn(2, 6, CHANNELS, 2, 2).requires_grad_()
    cls = torch.randn(6, WIDTH)
    with torch.autocast("cpu", torch.bfloat16):
        loss = term(step_of((detail, semantic), cls, KEPT))
    pooled = torch.stack([semantic[:, :, i, j] for i in range(2) for j in range(2)]).mean(0)
    features = pooled @ term.linear.weight.T + term.linear.bias
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(slow_contrast(features, cls, KEPT, 0.07, True), rel=1e-4)
    assert torch.autograd.grad(loss, (detail, semantic), allow_unused=True)[0] is None
    other = SemanticContrast("high", subspace=0)
    other.linear = term.linear
    assert other(step_of((detail, semantic), cls)).item() != pytest.approx(loss.item(), rel=1e-3)


def test_a_shared_projection_trains_the_tokenizer_and_belongs_to_it(tmp_path: Path) -> None:
    """As released: inner products with the class token behind the tokenizer's own projection."""
    term, tokenizer = SemanticContrast("high", normalize=False, temperature=1.0, projection="shared"), folded()
    term.connect(tokenizer, teachers(tmp_path))
    assert not term.state_dict() and not [*term.parameters()]
    semantic, cls = torch.randn(6, CHANNELS, 2, 2), torch.randn(6, WIDTH)
    loss = term(step_of((semantic,), cls))
    layer = tokenizer.quant_conv
    targets = cls @ layer.weight[:, :, 0, 0].T + layer.bias
    expected = slow_contrast(semantic.mean((2, 3)), targets, torch.ones(6), 1.0, False)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert layer.weight.grad is not None and layer.weight.grad.abs().sum() > 0


def test_a_step_reads_nothing_from_the_device(tmp_path: Path) -> None:
    term = SemanticContrast("high")
    term.connect(folded(), teachers(tmp_path))
    step = step_of((torch.randn(6, CHANNELS, 2, 2).requires_grad_(),), torch.randn(6, WIDTH), KEPT)
    with host_syncs() as counts:
        term(step).backward()
    assert not counts


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"subspace": 2}, "guides subspace 2, but the tokenizer has 2: set subspace to 0 … 1, or to -1"),
        ({"subspace": -3}, "guides subspace -3"),
        ({"projection": "shared"}, "FoldedTokenizer has none from 16 channels, the teacher's, to 4.*projection to own"),
    ],
)
def test_a_tokenizer_that_does_not_fit_is_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        SemanticContrast("high", **settings).connect(folded(dim=8), teachers(tmp_path))


def test_settings_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="ConvolutionalTokenizer has none from 16"):
        SemanticContrast("high", projection="shared").connect(tiny_tokenizer(), teachers(tmp_path))
    for wrong in (0, float("nan")):
        with pytest.raises(UserError, match=f"SemanticContrast: temperature is {wrong}; it must be above 0"):
            SemanticContrast("high", temperature=wrong)
    with pytest.raises(UserError, match="SemanticContrast: projection is 'both'; it must be own or shared"):
        SemanticContrast("high", projection="both")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="no negatives in a batch of one"):
        symmetric_contrast(torch.ones(1, 2), torch.ones(1, 2), torch.ones(1, dtype=torch.bool), 1.0, True)


def contrast(rows: slice, projection: str) -> dict[str, list[float]]:
    """Loss of some of six images, and its gradients at the projection and at the subspace."""
    torch.manual_seed(0)
    term = SemanticContrast("high", temperature=0.5, projection=projection)  # type: ignore[arg-type]
    layer: Any = torch.nn.Linear(CHANNELS, WIDTH) if projection == "own" else torch.nn.Conv2d(WIDTH, CHANNELS, 1)
    term.linear, term._quant_conv = layer, (layer,)
    semantic = torch.randn(6, CHANNELS, 2, 2)[rows].requires_grad_()
    loss = term(step_of((semantic,), torch.randn(6, WIDTH)[rows], KEPT[rows]))
    loss.backward()
    weights = torch.cat([parameter.grad.flatten() for parameter in layer.parameters()])
    return {"loss": [loss.item()], "weights": weights.tolist(), "subspace": semantic.grad.flatten().tolist()}


def contrast_on_rank(rank: int) -> dict[str, dict[str, list[float]]]:
    rows = slice(0, 3) if rank == 0 else slice(3, 6)
    return {projection: contrast(rows, projection) for projection in ("own", "shared")}


@pytest.mark.cluster
def test_two_ranks_are_one_batch(tmp_path: Path) -> None:
    """Averaged over ranks, as DDP does, loss and gradients of 3 + 3 images are those of 6 on one rank."""
    ranks = run_on_ranks(contrast_on_rank, tmp_path)
    for projection in ("own", "shared"):
        together, found = contrast(slice(0, 6), projection), [rank[projection] for rank in ranks]
        for name in ("loss", "weights"):
            mean = torch.tensor([one[name] for one in found]).mean(0)
            torch.testing.assert_close(mean, torch.tensor(together[name]), rtol=1e-5, atol=1e-6, msg=name)
        subspace = torch.tensor([*found[0]["subspace"], *found[1]["subspace"]]) / 2
        torch.testing.assert_close(subspace, torch.tensor(together["subspace"]), rtol=1e-5, atol=1e-6)
