"""Groups of codes by their vectors."""

import pytest
import torch

from polytoken.metrics.code_groups import code_groups
from polytoken.tokenizers import Tokenizer
from tests.support.tokenizers import tiny_folded, tiny_scales, tiny_tokenizer


@pytest.mark.parametrize("tokenizer", [tiny_tokenizer(), tiny_scales(), tiny_folded()], ids=["vq", "scales", "folded"])
def test_codes_of_near_vectors_are_a_group(tokenizer: Tokenizer) -> None:
    kinds = torch.arange(16) % 3
    with torch.no_grad():
        weight = tokenizer.quantizer.branches[1].embedding.weight
        weight.copy_(torch.eye(4)[kinds] * 5 + 0.01 * torch.randn(16, 4))
    counts = torch.ones(16, dtype=torch.int64)
    counts[[3, 7]] = 0
    groups = code_groups(tokenizer, 1, counts, 3)
    used = counts > 0
    same = groups[used][:, None] == groups[used][None]
    assert torch.equal(same, kinds[used][:, None] == kinds[used][None])
    assert groups[3] == groups[7] == 0, "codes that never occur"


def test_small_codebooks_stay_as_they_are() -> None:
    counts = torch.tensor([0, 5, 0, 2, 1] + [0] * 11)
    assert code_groups(tiny_tokenizer(), 0, counts, 3)[[1, 3, 4]].tolist() == [0, 1, 2]


def test_frequent_codes_attract_the_means() -> None:
    tokenizer = tiny_tokenizer(num_subspaces=1)
    with torch.no_grad():
        weight = tokenizer.quantizer.branches[0].embedding.weight
        weight.zero_()
        weight[:3, 0] = torch.tensor([0.0, 1.0, 2.2])
    counts = torch.zeros(16, dtype=torch.int64)
    counts[:3] = torch.tensor([1000, 1000, 1])
    groups = code_groups(tokenizer, 0, counts, 2)
    assert groups[1] == groups[2] != groups[0], "by distance alone, 0 and 1 are a group"
