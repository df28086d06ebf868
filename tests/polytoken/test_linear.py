import pytest
import torch

from polytoken.linear import MAX_ROWS, MIN_ROWS, Linear


@pytest.mark.parametrize("rows", [1, *range(MIN_ROWS, MAX_ROWS + 1), 9])
def test_any_number_of_rows_gives_the_product(rows):
    torch.manual_seed(0)
    layer, features = Linear(5, 3), torch.randn(rows, 1, 5)
    expected = features.double() @ layer.weight.double().T
    with torch.no_grad():
        torch.testing.assert_close(layer(features), expected.float())


def test_gradients_are_a_linear_layers():
    layer, features = Linear(5, 3), torch.randn(4, 5)
    layer(features).sum().backward()
    torch.testing.assert_close(layer.weight.grad, features.sum(0).expand(3, 5))


def test_bfloat16_stays_bfloat16():
    with torch.no_grad():
        assert Linear(5, 3).bfloat16()(torch.randn(4, 5).bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("gradients", [True, False])
def test_it_compiles_for_any_number_of_rows(gradients):
    torch.compiler.reset()
    layer = torch.compile(Linear(5, 3), backend="eager", dynamic=True, fullgraph=True)
    with torch.set_grad_enabled(gradients):
        for rows in (3, 4, 12):
            assert layer(torch.randn(rows, 5)).shape == (rows, 3)
