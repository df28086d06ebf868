"""Features of tokenizers by name."""

from pathlib import Path

import pytest
import torch

from polytoken.errors import UserError
from polytoken.features import check_feature, feature_names, features_of
from tests.support.tokenizers import tiny_folded, tiny_representation, tiny_tokenizer

IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_subspaces_before_and_after_quantization() -> None:
    tokenizer = tiny_tokenizer().eval()
    encoding = tokenizer.encode(IMAGES)
    names = ["before/all", "before/0", "before/1", "after/all", "after/0", "after/1"]
    assert feature_names(tokenizer) == names
    found = dict(zip(names, features_of(tokenizer, IMAGES, *names), strict=True))
    for name, expected in {
        "before/1": encoding.latents[1],
        "after/0": encoding.subspaces[0],
        "after/all": encoding.quantized,
        "before/all": torch.cat(encoding.latents, 1),
    }.items():
        torch.testing.assert_close(found[name], expected, rtol=0, atol=0)
        assert not found[name].requires_grad


def test_scales_are_summed() -> None:
    tokenizer = tiny_folded().eval()
    found = features_of(tokenizer, IMAGES, "before/all", "after/1")
    assert [one.shape for one in found] == [(2, 8, 3, 3), (2, 4, 3, 3)]


def test_a_foundation_model_has_two_more_sides(tmp_path: Path) -> None:
    tokenizer = tiny_representation(tmp_path).eval()
    names = ["foundation/deep", "foundation/shallow", "decoded/deep", "decoded/shallow"]
    assert feature_names(tokenizer)[-4:] == names
    decoded, encoding = tokenizer(IMAGES)
    found = features_of(tokenizer, IMAGES, *names)
    expected = [*encoding.features.values(), *decoded.features.values()]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"no feature 'after/2' in runs/x: choose one of before/all, .*after/1$"):
        check_feature(tiny_tokenizer(), "after/2", "runs/x")
