import itertools

import pytest
import torch

from polytoken.quantizers.digits import codes_to_digits, digits_to_codes


def test_codes_follow_the_papers_equation() -> None:
    digits, levels = torch.tensor([2, 2, 1, 0]), torch.tensor([3, 3, 3, 3])
    assert digits_to_codes(digits, levels).item() == 75
    assert digits_to_codes(digits, levels, "little_endian").item() == 2 + 2 * 3 + 1 * 9 + 0 * 27


@pytest.mark.parametrize("order", ["big_endian", "little_endian"])
def test_codes_count_all_digits_of_unequal_levels(order: str) -> None:
    levels = torch.tensor([2, 3, 5])
    digits = torch.tensor(list(itertools.product(range(2), range(3), range(5))))
    codes = digits_to_codes(digits, levels, order)
    assert sorted(codes.tolist()) == list(range(30))
    assert torch.equal(codes_to_digits(codes, levels, order), digits)
    steps = [15, 5, 1] if order == "big_endian" else [1, 2, 6]
    assert digits_to_codes(torch.eye(3, dtype=torch.int64), levels, order).tolist() == steps
