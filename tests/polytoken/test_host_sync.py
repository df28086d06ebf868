from collections.abc import Callable

import pytest
import torch

from tests.support.host_sync import host_syncs

VALUES = torch.tensor([0.0, 1.0, 2.0])


@pytest.mark.parametrize(
    ("wait", "name"),
    [
        (lambda: VALUES.sum().item(), "aten::_local_scalar_dense"),
        (lambda: bool((VALUES > 1).any()), "aten::_local_scalar_dense"),
        (lambda: VALUES.nonzero(), "aten::nonzero"),
        (lambda: VALUES.unique(), "aten::_unique2"),
        (lambda: VALUES[VALUES > 1], "aten::index.Tensor"),
        (lambda: VALUES.clone().index_put_((VALUES > 1,), VALUES[0]), "aten::index_put_"),
        (lambda: torch.equal(VALUES, VALUES), "aten::equal"),
        (lambda: VALUES.tolist(), "tolist"),
        (lambda: VALUES.numpy(), "numpy"),
        (lambda: torch.tensor([1.0]), "tensor"),
        (lambda: VALUES.new_tensor([1.0]), "new_tensor"),
    ],
)
def test_reads_of_the_host_are_counted(wait: Callable[[], object], name: str) -> None:
    with host_syncs() as counts:
        wait()
    assert counts == {name: 1}


def test_backward_is_counted() -> None:
    class Reads(torch.autograd.Function):
        @staticmethod
        def forward(context: object, value: torch.Tensor) -> torch.Tensor:
            return value.clone()

        @staticmethod
        def backward(context: object, gradient: torch.Tensor) -> torch.Tensor:
            return gradient * gradient.sum().item()

    with host_syncs() as counts:
        Reads.apply(VALUES.clone().requires_grad_()).sum().backward()
    assert counts.total() == 1


def test_fixed_shapes_are_free() -> None:
    order = torch.tensor([2, 1, 0])
    with host_syncs() as counts:
        torch.where(VALUES > 1, VALUES[order], VALUES).argmax().add(1)
    assert not counts
