import pytest
import torch

from polytoken.fingerprint import fingerprint
from polytoken.tokenizers import Tokenizer
from tests.support.tokenizers import tiny_scales, tiny_tokenizer


@pytest.mark.parametrize(
    ("tokenizer", "expected"),
    [
        (tiny_tokenizer(), "729e3002653d5d169ea92b4ea2540b558b958067e530356e6f688fea66ed71ef"),
        (tiny_scales(), "85d307fdc8135376c9fa7e2fde7f8558ced994f24fef99e69f55f4a638841529"),
    ],
    ids=["one scale", "two scales"],
)
def test_fingerprints_stay_what_records_name(tokenizer: Tokenizer, expected: str) -> None:
    """Token stores, generators and exported folders name their tokenizer by it; weights here are 0, 1, 2, …"""
    for number, tensor in enumerate(tokenizer.state_dict().values()):
        tensor.fill_(number)
    assert fingerprint(tokenizer) == expected


def test_one_bit_of_a_weight_changes_it() -> None:
    tokenizer = tiny_tokenizer()
    before = fingerprint(tokenizer)
    assert before == fingerprint(tiny_tokenizer()) and len(before) == 64
    assert before == fingerprint(tiny_tokenizer().to(memory_format=torch.contiguous_format))
    with torch.no_grad():
        tokenizer.last_layer[0, 0, 0, 0].nextafter_(torch.tensor(10.0))
    assert fingerprint(tokenizer) != before


def test_frozen_networks_outside_the_state_dict_change_it() -> None:
    """Codes of a frozen encoder depend on weights outside the checkpoint."""
    seen = set()
    for identities in ({}, {"encoder": "siglip 1111"}, {"encoder": "siglip 2222"}, {"target": "siglip 1111"}):
        tokenizer = tiny_tokenizer()
        tokenizer.frozen_identities = lambda identities=identities: identities
        seen.add(fingerprint(tokenizer))
    assert len(seen) == 4
