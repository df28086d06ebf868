"""Negative log-likelihoods of one trunk under three heads are of the same joint code, in the same unit."""

import math

import pytest
import torch
from torch import Tensor

from polytoken.codec import FrozenCodec
from polytoken.generators import (
    AutoregressiveHead,
    Head,
    MaskedBitHead,
    MultiLinearHead,
    NextScaleGenerator,
    NextScaleTrunkConfig,
)
from polytoken.quantizers import MultiScaleQuantizer
from polytoken.specs import Tokens
from tests.support.tokenizers import tiny_tokenizer


def dependent(batch: int, seed: int) -> Tensor:
    """Codes (B, 2, 5): uniform among 4; the second equals the first with probability 0.7, else it is any other."""
    stream = torch.Generator().manual_seed(seed)
    first, other = torch.randint(4, (2, batch, 5), generator=stream)
    return torch.stack([first, torch.where(torch.rand(batch, 5, generator=stream) < 0.6, first, other)], dim=1)


@pytest.mark.parametrize(
    ("head", "name", "knows"),
    [
        (MultiLinearHead(), "nll", False),
        (AutoregressiveHead(depth=1), "nll", True),
        (MaskedBitHead("codes", depth=1), "nll_bound", True),
    ],
    ids=["linear", "autoregressive", "masked"],
)
def test_dependency_of_sub_codes_is_the_gap_between_heads(head: Head, name: str, knows: bool) -> None:
    torch.manual_seed(0)
    branch = MultiScaleQuantizer((1, 2), codebook_size=4, code_dim=4, num_convolutions=1, dropout_start=1)
    tokenizer = tiny_tokenizer(branch=branch)
    made = NextScaleGenerator(NextScaleTrunkConfig(depth=1, dim=16, num_heads=2, class_dropout=0.0), head)
    assert tokenizer.spec is not None
    made.connect(tokenizer.spec, 1, FrozenCodec(lambda: tokenizer, [0, 1]))
    optimizer = torch.optim.Adam(made.parameters(), 1e-2)
    for step in range(60):
        codes = dependent(128, step)
        optimizer.zero_grad()
        made.loss(Tokens(codes=codes), codes.new_zeros(128)).total.backward()
        optimizer.step()
    made.eval()
    codes = dependent(4000, 1000)
    with torch.no_grad():
        loss = made.loss(Tokens(codes=codes), codes.new_zeros(4000))
    assert loss.name == name and loss.unit == "nats"
    equal, unequal = 0.7, 0.1  # 0.6 + 0.4 / 4, and each of the three others
    conditional = -equal * math.log(equal) - 3 * unequal * math.log(unequal)
    joint = math.log(4) + (conditional if knows else math.log(4))
    assert sum(loss.parts.values()).item() == pytest.approx(joint, abs=0.04)
