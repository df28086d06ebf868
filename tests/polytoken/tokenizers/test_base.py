"""Inputs and types that all tokenizers take."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from polytoken.tokenizers import Tokenizer
from tests.support.tokenizers import tiny_folded, tiny_representation, tiny_scales, tiny_tokenizer

TOKENIZERS: dict[str, Callable[[Path], Tokenizer]] = {
    "convolutional": lambda _: tiny_tokenizer(),
    "several scales": lambda _: tiny_scales(),
    "folded": lambda _: tiny_folded(),
    "representation": tiny_representation,
}


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> Tokenizer:
    return TOKENIZERS[request.param](tmp_path).eval().requires_grad_(False)


def test_weights_of_float64_encode_and_decode(tokenizer: Tokenizer) -> None:
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    expected, encoding = tokenizer(images)
    tokenizer.double()
    decoded, found = tokenizer(images)
    assert encoding.codes is not None and found.codes is not None and torch.equal(found.codes, encoding.codes)
    for image in (decoded.image, tokenizer.decode_codes(found.codes), tokenizer.decode(found.quantized).image):
        assert image.dtype == torch.float64
        torch.testing.assert_close(image, expected.image.double(), rtol=1e-4, atol=1e-4)


def test_a_batch_may_be_empty(tokenizer: Tokenizer) -> None:
    spec = tokenizer.require_codes()
    decoded, encoding = tokenizer(torch.zeros(0, 3, 16, 16))
    assert encoding.codes is not None and encoding.codes.shape == (0, spec.num_sub_codes, spec.num_positions)
    assert decoded.image.shape == tokenizer.decode_codes(encoding.codes).shape == (0, 3, 16, 16)
