import torch

from polytoken.fingerprint import fingerprint
from tests.support.tokenizers import tiny_tokenizer


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
