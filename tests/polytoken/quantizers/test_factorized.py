import pytest
import torch

from polytoken.quantizers import FactorizedQuantizer


def build(**changes) -> FactorizedQuantizer:
    sizes = {"in_channels": 32, "codebook_size": 16, "code_dim": 4, "adapter_depth": 1, "grid_size": 4}
    torch.manual_seed(0)
    return FactorizedQuantizer(**(sizes | {"latent_channels": 32} | changes))


@pytest.mark.parametrize("num_subspaces", [1, 2, 3, 4])
@pytest.mark.parametrize("adapter", ["transformer", "convolutional", "none"])
def test_shapes_and_sums(num_subspaces: int, adapter: str) -> None:
    quantizer = build(num_subspaces=num_subspaces, adapter=adapter, entropy_weight=0.1)
    encoding = quantizer(torch.randn(2, 32, 4, 4))
    assert encoding.codes.shape == (2, num_subspaces, 16)
    assert encoding.codes.dtype == torch.int64
    assert encoding.quantized.shape == (2, 4 * num_subspaces, 4, 4) == (2, quantizer.out_channels, 4, 4)
    assert torch.equal(torch.cat(encoding.subspaces, 1), encoding.quantized)
    assert tuple(part.shape[1] for part in encoding.subspaces) == quantizer.subspace_channels
    assert set(encoding.losses) == {"codebook", "commitment", "entropy"}
    sub_losses = [
        codebook(latent).losses for codebook, latent in zip(quantizer.codebooks, encoding.latents, strict=True)
    ]
    for name, value in encoding.losses.items():
        assert value.item() == pytest.approx(sum(losses[name].item() for losses in sub_losses), rel=1e-4)
    assert torch.allclose(quantizer.embed_codes(encoding.codes, (4, 4)), encoding.quantized, atol=1e-6)


def test_adapters_start_apart() -> None:
    """Each adapter and each of its layers has random weights of its own."""
    quantizer = build(adapter="transformer", adapter_depth=2)
    first, second = (adapter.blocks[0].linear1.weight for adapter in quantizer.adapters)
    assert not torch.equal(first, second)
    blocks = quantizer.adapters[0].blocks
    assert not torch.equal(blocks[0].linear1.weight, blocks[1].linear1.weight)


def test_other_grids_resample_the_positions() -> None:
    quantizer = build(adapter="transformer").eval()
    assert quantizer(torch.randn(1, 32, 6, 8)).codes.shape == (1, 2, 48)


def test_wrong_number_of_sub_codes_is_named() -> None:
    with pytest.raises(ValueError, match="3 sub-codes.*2 codebooks"):
        build().embed_codes(torch.zeros(1, 3, 16, dtype=torch.int64), (4, 4))
