"""Reconstruction of features against float64 loops, and its targets."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polytoken.errors import UserError
from polytoken.losses import FeatureReconstruction, TokenizerObjective, TokenizerStep
from polytoken.specs import Decoded, Encoding
from tests.support.tokenizers import tiny_tokenizer


def step_of(decoded: Tensor, target: Tensor) -> TokenizerStep:
    images = torch.zeros(2, 3, 8, 8)
    encoding = Encoding(codes=None, quantized=images, features={"deep": target})
    return TokenizerStep(images, Decoded(images, {"deep": decoded}), encoding, nn.Parameter(torch.ones(1)), 0)


def reference(decoded: Tensor, target: Tensor, normalize: bool) -> Tensor:
    total = torch.zeros(())
    pairs = zip(
        decoded.double().movedim(1, -1).flatten(0, 2), target.double().movedim(1, -1).flatten(0, 2), strict=True
    )
    rows = 0
    for found, wanted in pairs:
        if normalize:
            wanted = (wanted - wanted.mean()) / (wanted.var(correction=0) + 1e-5).sqrt()
        cosine = found @ wanted / (found.norm() * wanted.norm())
        total = total + (found - wanted).square().mean() + (1 - cosine)
        rows += 1
    return total / rows


@pytest.mark.parametrize("normalize", [False, True])
def test_square_and_cosine_against_a_loop(normalize: bool) -> None:
    torch.manual_seed(0)
    decoded, target = torch.randn(2, 6, 3, 3), 5 * torch.randn(2, 6, 3, 3) + 2
    found = FeatureReconstruction("deep", normalize=normalize)(step_of(decoded, target))
    torch.testing.assert_close(found.double(), reference(decoded, target, normalize), rtol=1e-5, atol=1e-6)


def test_the_target_has_no_gradient() -> None:
    decoded, target = (torch.randn(2, 4, 2, 2, requires_grad=True) for _ in range(2))
    FeatureReconstruction("deep")(step_of(decoded, target)).backward()
    assert decoded.grad is not None and target.grad is None


def test_float32_under_autocast() -> None:
    torch.manual_seed(0)
    decoded, target = torch.randn(2, 64, 2, 2), torch.randn(2, 64, 2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        found = FeatureReconstruction("deep")(step_of(decoded, target))
    torch.testing.assert_close(found.double(), reference(decoded, target, False), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"mse": 0.0, "cosine": 0.0},
            "the reconstruction of feature 'deep' has mse 0 and cosine 0: set one above 0",
        ),
        ({"mse": -1.0}, "FeatureReconstruction: mse is -1.0; it must be at least 0"),
    ],
)
def test_factors_out_of_range(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        FeatureReconstruction("deep", **changes)


def test_a_feature_that_nobody_decodes() -> None:
    objective = TokenizerObjective(terms={"middle": FeatureReconstruction("middle", start_step=9)})
    with pytest.raises(UserError, match="middle reads features 'middle', and the tokenizer decodes none"):
        objective.connect(tiny_tokenizer())
