import pytest
import torch
from torch.nn import functional

from polytoken.generators.linear_cross_entropy import linear_cross_entropy


def problem(rows: int = 50) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    stream = torch.Generator().manual_seed(0)
    features = torch.randn(rows, 16, generator=stream).requires_grad_()
    weight = torch.randn(33, 16, generator=stream).requires_grad_()
    return features, weight, torch.randint(33, (rows,), generator=stream)


def value_and_gradients(compute, features, weight, targets) -> list[torch.Tensor]:
    features, weight = features.detach().requires_grad_(), weight.detach().requires_grad_()
    loss = compute(features, weight, targets)
    loss.backward()
    return [loss.detach(), features.grad, weight.grad]


def plain(features, weight, targets) -> torch.Tensor:
    return functional.cross_entropy(functional.linear(features, weight).float(), targets)


def exact_loss(features, weight, targets) -> torch.Tensor:
    return functional.cross_entropy(functional.linear(features, weight), targets)


@pytest.mark.parametrize("max_logits", [1, 33 * 7, 33 * 49, 33 * 50])
def test_equals_the_plain_loss_in_float64(max_logits: int) -> None:
    features, weight, targets = problem()
    chunked = value_and_gradients(lambda *args: 3 * linear_cross_entropy(*args, max_logits), features, weight, targets)
    exact = value_and_gradients(exact_loss, features.double(), weight.double(), targets)
    for value, expected in zip(chunked, exact, strict=True):
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, (3 * expected).float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("max_logits", [33 * 7, 33 * 50])
def test_a_bias_is_added(max_logits: int) -> None:
    features, weight, targets = problem()
    bias = torch.linspace(-2, 2, 33).requires_grad_()
    linear_cross_entropy(features, weight, targets, max_logits, bias).backward()
    found = bias.grad.clone()
    bias.grad = None
    functional.cross_entropy(functional.linear(features, weight, bias), targets).backward()
    assert torch.allclose(found, bias.grad, atol=1e-6)


def test_every_product_is_computed_once() -> None:
    """Three a chunk with gradients, and one without, in forward; none in backward."""
    features, weight, targets = problem()
    with Products() as products:
        loss = linear_cross_entropy(features, weight, targets, 33 * 10)
        assert products.count == 3 * 5
        loss.backward()
        assert products.count == 3 * 5
        linear_cross_entropy(features, weight.detach(), targets, 33 * 10).backward()
        assert products.count == 5 * 5
        with torch.no_grad():
            linear_cross_entropy(features, weight, targets, 33 * 10)
        assert products.count == 6 * 5


def test_gradients_are_of_the_type_of_what_they_belong_to() -> None:
    """As under FSDP2, whose gathered weights are bfloat16; their gradients are summed in float32 all the same."""
    features, weight, targets = problem(500)
    exact = value_and_gradients(plain, features, weight, targets)
    found = value_and_gradients(
        lambda *args: linear_cross_entropy(*args, 33), features.bfloat16(), weight.bfloat16(), targets
    )
    assert [value.dtype for value in found] == [torch.float32, torch.bfloat16, torch.bfloat16]
    for value, expected in zip(found, exact, strict=True):
        assert (value.float() - expected).norm() < 0.008 * expected.norm()


def test_bfloat16_sums_in_float32() -> None:
    features, weight, targets = problem(2000)
    features, weight = features.bfloat16(), weight.bfloat16()
    with torch.no_grad():
        loss = linear_cross_entropy(features, weight, targets, 33 * 10)
        expected = functional.cross_entropy(functional.linear(features, weight).double(), targets)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_gradients_are_summed_in_float32_under_autocast() -> None:
    """Chunks of one row; a bfloat16 sum would lose the small ones."""
    tensors = problem(500)
    exact = value_and_gradients(plain, *tensors)
    with torch.autocast("cpu", torch.bfloat16):
        chunked = value_and_gradients(lambda *args: linear_cross_entropy(*args, 33), *tensors)
    assert chunked[0].dtype == torch.float32
    for value, expected in zip(chunked, exact, strict=True):
        assert (value - expected).norm() < 0.006 * expected.norm()


def test_the_logits_are_never_held_whole() -> None:
    largest = Largest()
    with largest:
        features, weight, targets = problem(3300)
        linear_cross_entropy(features, weight, targets, max_logits=33 * 100).backward()
    assert largest.entries < 3300 * 33
    with largest:
        plain(features, weight, targets).backward()
    assert largest.entries >= 3300 * 33


class Largest(torch.utils._python_dispatch.TorchDispatchMode):
    """Records the size of the largest tensor that an operation returned."""

    entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple) else (result,):
            if isinstance(value, torch.Tensor):
                self.entries = max(self.entries, value.numel())
        return result


class Products(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts matrix products."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += "mm" in func.name()
        return func(*args, **(kwargs or {}))
