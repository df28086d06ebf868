import torch

from polytoken.constants import constant

CPU = torch.device("cpu")


def test_a_constant_is_made_once_for_each_device_and_type() -> None:
    first = constant((1, 2), CPU, torch.int64)
    assert first.tolist() == [1, 2] and constant((1, 2), CPU, torch.int64) is first
    assert constant((1.0, 2.0), CPU, torch.float32).dtype == torch.float32  # equal to the integers as a key


def test_a_constant_made_in_inference_mode_has_gradients_later() -> None:
    with torch.inference_mode():
        factors = constant((3.0, 5.0), CPU, torch.float64)
    values = torch.ones(2, dtype=torch.float64, requires_grad=True)
    (values * factors).sum().backward()
    assert values.grad is not None and values.grad.tolist() == [3, 5]
