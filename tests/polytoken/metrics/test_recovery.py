"""Use of codes after their codebook was scaled, against a step in float64."""

import numpy as np
import pytest
import torch
from torch import Tensor

from polytoken.errors import UserError
from polytoken.metrics.recovery import Recovery, UsageCurve, quantized_features, usage_curve
from polytoken.quantizers import (
    FactorizedQuantizer,
    FiniteScalarQuantizer,
    LookupFreeQuantizer,
    MultiScaleQuantizer,
    VectorQuantizer,
)
from tests.support.precision import tf32_of_convolutions
from tests.support.tokenizers import tiny_folded, tiny_tokenizer

STEP = Recovery(steps=1, learning_rate=0.5, batch_size=4, evaluations=1, seed=3)


def unnormalised(size: int = 24, channels: int = 3) -> VectorQuantizer:
    torch.manual_seed(0)
    made = VectorQuantizer(size, channels, normalize=False, codebook_weight=1.0)
    torch.nn.init.normal_(made.embedding.weight)
    return made


def features(channels: int = 3) -> Tensor:
    return torch.randn(12, channels, 2, 2, generator=torch.manual_seed(1))


def share(rows: np.ndarray, codebook: np.ndarray) -> float:
    """Share of the codes that are nearest to a row."""
    distances = np.square(rows[:, None] - codebook[None]).sum(-1)
    return len(set(distances.argmin(1).tolist())) / len(codebook)


@pytest.mark.parametrize("factor", [0.01, 1.0, 100.0])
def test_a_step_of_adam_moves_the_selected_codes_by_the_rate(factor: float) -> None:
    quantizer, read = unnormalised(), features()
    before = quantizer.embedding.weight.clone()
    curve = usage_curve(quantizer, read, factor, STEP)
    assert torch.equal(quantizer.embedding.weight, before)

    rows = read.permute(0, 2, 3, 1).double().numpy()
    codebook = before.detach().double().numpy() * factor
    with torch.random.fork_rng():
        torch.manual_seed(STEP.seed)
        batch = rows[torch.randint(12, (4,)).numpy()].reshape(-1, 3)
    moved = codebook.copy()
    chosen = np.square(batch[:, None] - codebook[None]).sum(-1).argmin(1)
    for code in set(chosen.tolist()):
        gradient = (codebook[code] - batch[chosen == code]).sum(0)
        moved[code] -= STEP.learning_rate * np.sign(gradient)  # Adam's first step
    everything = rows.reshape(-1, 3)
    assert curve.steps == [0, 1]
    assert curve.usage == [[share(everything, codebook), share(everything, moved)]]


def test_a_wrong_scale_costs_codes_which_training_recovers() -> None:
    quantizer, read = unnormalised(), features()
    settings = Recovery(steps=60, learning_rate=0.05, batch_size=12, evaluations=4)
    torch.manual_seed(9)
    state = torch.get_rng_state()
    curves = {factor: usage_curve(quantizer, read, factor, settings) for factor in (0.01, 1.0)}
    assert torch.equal(torch.get_rng_state(), state)
    assert curves[0.01] == usage_curve(quantizer, read, 0.01, settings)
    (small,), (right,) = curves[0.01].usage, curves[1.0].usage
    assert small[0] < right[0] and small[-1] > small[0]
    assert curves[0.01].steps == [0, 15, 30, 45, 60]


def test_the_area_is_the_mean_over_the_steps() -> None:
    curve = UsageCurve([0, 10, 40], [[0.0, 1.0, 1.0], [0.2, 0.2, 0.2]])
    assert curve.area() == pytest.approx([(5 + 30) / 40, 0.2])


@pytest.mark.parametrize(
    "branch", [VectorQuantizer(8, 4), MultiScaleQuantizer((1, 2), 8, 4, dropout=0.5, dropout_start=1)]
)
def test_every_codebook_has_a_curve(branch: VectorQuantizer | MultiScaleQuantizer) -> None:
    curve = usage_curve(FactorizedQuantizer(branch, 2), features(8), 100.0, STEP)
    assert [len(one) for one in curve.usage] == [2, 2] and all(0 < use <= 1 for one in curve.usage for use in one)


@pytest.mark.parametrize("quantizer", [FiniteScalarQuantizer((5, 5, 3)), LookupFreeQuantizer(3, 1)])
def test_points_of_a_grid_have_no_scale(quantizer: FiniteScalarQuantizer | LookupFreeQuantizer) -> None:
    with pytest.raises(UserError, match="has no codebook to scale"):
        usage_curve(quantizer, features(), 100.0, STEP)


def test_losses_that_train_no_codebook_are_refused() -> None:
    with pytest.raises(UserError, match="train no codebook"):
        usage_curve(VectorQuantizer(8, 3, codebook_weight=0.0), features(), 100.0, STEP)


@pytest.mark.parametrize("make", [tiny_tokenizer, tiny_folded])
def test_recorded_features_have_the_codes_of_their_images(make, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = make().eval()
    images = torch.rand(5, 3, 16, 16, generator=torch.manual_seed(1)) * 2 - 1
    with monkeypatch.context() as patch:
        tf32 = tf32_of_convolutions(patch)
        read = quantized_features(tokenizer, images.split(2))
    assert tf32 == {False}
    with torch.no_grad():
        assert torch.equal(tokenizer.quantizer(read).codes, tokenizer.encode(images).codes)
    assert not tokenizer.quantizer._forward_pre_hooks
