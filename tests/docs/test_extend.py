"""The parts that docs/extend.md writes work inside a tokenizer and an objective."""

import re
from typing import Any

import pytest
import torch

from polytoken.losses.base import TokenizerStep
from polytoken.tokenizers import ConvolutionalTokenizer
from tests.support.commands import REPOSITORY

BLOCKS = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs/extend.md").read_text(), re.DOTALL)


def class_of(name: str) -> Any:
    """The class that a block defines."""
    names: dict[str, Any] = {}
    exec(next(block for block in BLOCKS if f"class {name}(" in block), names)
    return names[name]


@pytest.fixture
def tokenizer() -> ConvolutionalTokenizer:
    torch.manual_seed(0)
    return ConvolutionalTokenizer(
        image_size=16,
        base_channels=32,
        channel_multipliers=[1, 1, 1],
        num_res_blocks=1,
        quantizer=class_of("TernaryQuantizer")(4),
    )


def test_the_quantizer_has_codes_of_its_vectors(tokenizer: ConvolutionalTokenizer) -> None:
    encoding = tokenizer.encode(torch.rand(2, 3, 16, 16) * 2 - 1)
    assert encoding.codes.shape == (2, 1, 16) and 0 <= encoding.codes.min() and encoding.codes.max() < 3**4
    assert torch.equal(tokenizer.quantizer.embed_codes(encoding.codes, (4, 4)), encoding.quantized)
    assert tokenizer.decode_codes(encoding.codes).shape == (2, 3, 16, 16)


def test_the_loss_term_is_a_scalar_with_a_gradient(tokenizer: ConvolutionalTokenizer) -> None:
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    decoded, encoding = tokenizer(images)
    loss = class_of("TotalVariation")(weight=0.01)(TokenizerStep(images, decoded, encoding, tokenizer.last_layer, 0))
    loss.backward()
    assert loss.shape == () and tokenizer.last_layer.grad.abs().sum() > 0
