import pytest
import torch
from torch import Tensor, nn

from polytoken.quantizers import (
    ContinuousBottleneck,
    FactorizedQuantizer,
    FiniteScalarQuantizer,
    Quantizer,
    VectorQuantizer,
)
from polytoken.specs import Encoding


@pytest.mark.parametrize("num_branches", [1, 2, 3, 4])
def test_branches_are_concatenated(num_branches: int) -> None:
    torch.manual_seed(0)
    quantizer = FactorizedQuantizer(VectorQuantizer(16, 4, entropy_weight=0.1), num_branches)
    assert quantizer.in_subspaces == quantizer.subspace_channels == (4,) * num_branches
    encoding = quantizer(torch.randn(2, quantizer.in_channels, 4, 4))
    assert encoding.codes.shape == (2, num_branches, 16)
    assert encoding.codes.dtype == torch.int64
    assert encoding.quantized.shape == (2, 4 * num_branches, 4, 4) == (2, quantizer.out_channels, 4, 4)
    assert torch.equal(torch.cat(encoding.subspaces, 1), encoding.quantized)
    assert set(encoding.losses) == {"codebook", "commitment", "entropy"}
    sub_losses = [branch(latent).losses for branch, latent in zip(quantizer.branches, encoding.latents, strict=True)]
    for name, value in encoding.losses.items():
        assert value.item() == pytest.approx(sum(losses[name].item() for losses in sub_losses), rel=1e-4)
    assert torch.allclose(quantizer.embed_codes(encoding.codes, (4, 4)), encoding.quantized, atol=1e-6)


def test_branches_have_weights_of_their_own() -> None:
    first, second, third = FactorizedQuantizer(VectorQuantizer(16, 4), 3).branches
    assert not torch.equal(first.embedding.weight, second.embedding.weight)
    assert not torch.equal(second.embedding.weight, third.embedding.weight)


def test_branch_with_several_sub_codes() -> None:
    quantizer = FactorizedQuantizer(FiniteScalarQuantizer([3, 4, 5, 2], num_sub_codes=2), 2).eval()
    assert quantizer.in_subspaces == (4, 4) and quantizer.subspace_channels == (2, 2, 2, 2)
    assert quantizer.codebook_sizes == (12, 10, 12, 10)
    encoding = quantizer(torch.randn(1, 8, 2, 3))
    assert encoding.codes.shape == (1, 4, 6)
    assert torch.allclose(quantizer.embed_codes(encoding.codes, (2, 3)), encoding.quantized, atol=1e-6)


def test_branches_without_codes() -> None:
    quantizer = FactorizedQuantizer(ContinuousBottleneck(3, kl_weight=1.0), 2)
    assert quantizer.in_subspaces == (6, 6)
    encoding = quantizer(torch.randn(1, 12, 2, 2))
    assert encoding.codes is None and encoding.quantized.shape == (1, 6, 2, 2) and set(encoding.losses) == {"kl"}


class Dropping(VectorQuantizer):
    """Reports that one sample dropped a scale."""

    def forward(self, features: Tensor) -> Encoding:
        encoding = super().forward(features)
        encoding.kept = torch.arange(len(features), device=features.device) != 1
        return encoding


def test_kept_is_true_where_every_branch_kept_the_sample() -> None:
    quantizer = FactorizedQuantizer(Dropping(16, 4), 2)
    assert quantizer(torch.randn(3, 8, 2, 2)).kept.tolist() == [True, False, True]
    assert FactorizedQuantizer(VectorQuantizer(16, 4), 2)(torch.randn(3, 8, 2, 2)).kept is None


def test_parameters_without_reset_are_rejected() -> None:
    class Careless(Quantizer):
        def __init__(self) -> None:
            super().__init__((4,), (4,), (16,))
            self.codebook = nn.Parameter(torch.zeros(16, 4))

        def forward(self, features: Tensor) -> Encoding:
            raise NotImplementedError

        def embed_codes(self, codes: Tensor, grid: tuple[int, int]) -> Tensor:
            raise NotImplementedError

    with pytest.raises(NotImplementedError, match="Careless has parameters and must define reset_parameters"):
        FactorizedQuantizer(Careless(), 2)


def test_wrong_number_of_sub_codes_is_rejected() -> None:
    with pytest.raises(ValueError, match="expected 2 sub-codes per position, got 3"):
        FactorizedQuantizer(VectorQuantizer(16, 4), 2).embed_codes(torch.zeros(1, 3, 16, dtype=torch.int64), (4, 4))
    with pytest.raises(ValueError, match="num_branches is 0; it must be at least 1"):
        FactorizedQuantizer(VectorQuantizer(16, 4), 0)
