"""Memory of keys and values."""

import torch

from polytoken.cache import KVCache


def build() -> KVCache:
    return KVCache(depth=2, batch=3, num_heads=2, capacity=5, head_dim=4, like=torch.zeros(1))


def test_positions_of_a_slice_return_what_is_written_so_far() -> None:
    cache = build()
    first, second = torch.randn(2, 3, 2, 2, 4), torch.randn(2, 3, 2, 1, 4)
    cache.update(1, slice(0, 2), *first)
    keys, values = cache.update(1, slice(2, 3), *second)
    torch.testing.assert_close((keys, values), tuple(torch.cat([first, second], dim=3)))
    assert not cache.keys[0].any()


def test_positions_of_a_tensor_return_the_full_capacity() -> None:
    cache, new = build(), torch.randn(2, 3, 2, 2, 4)
    keys, values = cache.update(0, torch.tensor([3, 1]), *new)
    assert keys.shape == values.shape == (3, 2, 5, 4)
    assert torch.equal(keys[:, :, [3, 1]], new[0])
    assert torch.equal(values[:, :, [3, 1]], new[1])
    assert not keys[:, :, [0, 2, 4]].any()


def test_rows_share_memory() -> None:
    cache = build()
    part = cache.rows(2)
    part.update(0, slice(0, 1), torch.ones(2, 2, 1, 4), torch.ones(2, 2, 1, 4))
    assert cache.keys[0][:2, :, 0].all()
    assert not cache.keys[0][2].any()
    assert cache.nbytes == 2 * 2 * 3 * 2 * 5 * 4 * 4
    assert part.nbytes == cache.nbytes * 2 // 3


def test_keys_come_back_in_the_type_they_were_given_in() -> None:
    keys, values = build().update(0, slice(0, 1), *torch.ones(2, 3, 2, 1, 4, dtype=torch.bfloat16))
    assert keys.dtype == values.dtype == torch.bfloat16
