import pytest
import torch

from polytoken.tokenizers.projection import SubspaceProjection


@pytest.mark.parametrize("adapter", ["transformer", "convolutional", "none"])
def test_subspaces_are_concatenated(adapter: str) -> None:
    torch.manual_seed(0)
    projection = SubspaceProjection(32, (4, 6), channels=16, adapter=adapter, adapter_depth=1, grid_size=4).eval()
    features = torch.randn(2, 32, 4, 4)
    first, second = projection(features).split((4, 6), dim=1)
    assert torch.equal(first, projection.tails[0](projection.adapters[0](features)))
    assert torch.equal(second, projection.tails[1](projection.adapters[1](features)))


def test_adapters_start_with_different_weights() -> None:
    """Adapters and their layers have independent random weights."""
    adapters = SubspaceProjection(32, (4, 4), 16, "transformer", adapter_depth=2, grid_size=4).adapters
    first, second = (adapter.blocks[0].linear1.weight for adapter in adapters)
    assert not torch.equal(first, second)
    assert not torch.equal(adapters[0].blocks[0].linear1.weight, adapters[0].blocks[1].linear1.weight)


def test_other_grids_resample_the_positions() -> None:
    projection = SubspaceProjection(32, (4, 4), 16, "transformer", adapter_depth=1, grid_size=4).eval()
    assert projection(torch.randn(1, 32, 6, 8)).shape == (1, 8, 6, 8)
