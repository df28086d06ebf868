"""Inputs that all quantizers take."""

import pytest
import torch
from torch import Tensor

from polytoken.quantizers import (
    ContinuousBottleneck,
    FactorizedQuantizer,
    FiniteScalarQuantizer,
    LookupFreeQuantizer,
    MultiScaleQuantizer,
    Quantizer,
    VectorQuantizer,
)
from polytoken.specs import Encoding

QUANTIZERS = {
    "vq": VectorQuantizer(7, 3),
    "fsq": FiniteScalarQuantizer((5, 4, 3)),
    "lfq": LookupFreeQuantizer(4, 2),
    "factorized": FactorizedQuantizer(VectorQuantizer(7, 3), 2),
    "several scales": MultiScaleQuantizer((1, 2, 4), 7, 3),
    "ae": ContinuousBottleneck(3),
    "vae": ContinuousBottleneck(3, kl_weight=1e-6),
}


class Listed(Quantizer):
    def __init__(self) -> None:
        super().__init__([3], [3], [8])  # type: ignore[arg-type]

    def forward(self, features: Tensor) -> Encoding: ...

    def embed_codes(self, codes: Tensor, grid: tuple[int, int]) -> Tensor: ...


def test_sizes_are_tuples() -> None:
    quantizer = Listed()
    assert (quantizer.in_subspaces, quantizer.subspace_channels, quantizer.codebook_sizes) == ((3,), (3,), (8,))


@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_batch_may_be_empty(name: str) -> None:
    quantizer: Quantizer = QUANTIZERS[name].eval()
    with torch.no_grad():
        one, none = (quantizer(torch.randn(count, quantizer.in_channels, 4, 4)) for count in (1, 0))
    assert none.quantized.shape == (0, *one.quantized.shape[1:])
    if one.codes is None:
        return
    assert none.codes.shape == (0, *one.codes.shape[1:]) and none.codes.dtype == one.codes.dtype
    assert quantizer.embed_codes(none.codes, (4, 4)).shape == none.quantized.shape
