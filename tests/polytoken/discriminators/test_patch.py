import copy
from contextlib import nullcontext

import pytest
import torch

from polytoken.discriminators import PatchDiscriminator
from polytoken.errors import UserError


def test_the_memory_format_changes_neither_logits_nor_second_derivatives() -> None:
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(base_channels=8, num_layers=2)
    assert discriminator[2].weight.is_contiguous(memory_format=torch.channels_last)
    contiguous = copy.deepcopy(discriminator).to(memory_format=torch.contiguous_format)
    images = torch.randn(2, 3, 32, 32)
    results = []
    for network in (discriminator, contiguous):
        inputs = images.clone().requires_grad_()
        logits = network(inputs)
        (gradient,) = torch.autograd.grad(logits.sum(), inputs, create_graph=True)
        gradient.square().sum().backward()  # R1
        results.append([logits, gradient, *(p.grad for p in network.parameters() if p.grad is not None)])
    torch.testing.assert_close(*results)
    assert len(results[0]) > 8


@pytest.mark.parametrize("num_layers", range(6))
@pytest.mark.parametrize("size", [4, 8, 16, 24, 32, 33])
def test_the_least_size_is_that_of_the_convolutions(num_layers: int, size: int) -> None:
    """Otherwise torch fails at the step at which the discriminator starts."""
    discriminator = PatchDiscriminator(base_channels=1, num_layers=num_layers).eval()
    try:
        discriminator(torch.zeros(1, 3, size, size))
    except RuntimeError:
        fits = pytest.raises(UserError, match=f"num_layers {num_layers}, which leaves no patch of images of {size} pix")
    else:
        fits = nullcontext()
    with fits:
        discriminator.check_size(size)
