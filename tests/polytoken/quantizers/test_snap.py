"""Snapping moves any vector to the nearest point that a code decodes to, and leaves these points where they are."""

import pytest
import torch
from torch import Tensor

from polytoken.errors import UserError
from polytoken.quantizers import (
    ContinuousBottleneck,
    FactorizedQuantizer,
    FiniteScalarQuantizer,
    LookupFreeQuantizer,
    Quantizer,
    VectorQuantizer,
)
from tests.support.tokenizers import tiny_tokenizer

QUANTIZERS = {
    "rounding": FiniteScalarQuantizer((5, 4, 3), cells="rounding"),
    "equal": FiniteScalarQuantizer((5, 4, 3, 3), cells="equal", num_sub_codes=2, order="little_endian"),
    "vq": VectorQuantizer(7, 3, normalize=False),
    "unit vq": VectorQuantizer(7, 3),
    "lfq": LookupFreeQuantizer(4, 2),
    "bsq": LookupFreeQuantizer(4, 1, sphere=True),
    "factorized": FactorizedQuantizer(VectorQuantizer(7, 3), 2),
}


def points(quantizer: Quantizer) -> list[Tensor]:
    """For each sub-code, all vectors (K, d) that its values decode to."""
    found = []
    first = 0
    for i, (size, width) in enumerate(zip(quantizer.codebook_sizes, quantizer.subspace_channels, strict=True)):
        codes = torch.zeros(1, len(quantizer.codebook_sizes), size, dtype=torch.int64)
        codes[0, i] = torch.arange(size)
        vectors = quantizer.embed_codes(codes, (1, size))[0, first : first + width, 0]
        found.append(vectors.T)
        first += width
    return found


@pytest.mark.parametrize("name", QUANTIZERS)
def test_the_nearest_point_is_found(name: str) -> None:
    torch.manual_seed(0)
    quantizer = QUANTIZERS[name].eval()
    latents = 1.5 * torch.randn(3, quantizer.out_channels, 2, 5)
    with torch.no_grad():
        snapped = quantizer.snap(latents)
        expected = []
        for subspace, table in zip(latents.split(quantizer.subspace_channels, 1), points(quantizer), strict=True):
            rows = subspace.permute(0, 2, 3, 1).double()
            nearest = torch.cdist(rows.flatten(0, 2), table.double()).argmin(1)  # the slow reference
            expected.append(table[nearest].view(rows.shape).permute(0, 3, 1, 2))
    assert snapped.dtype == torch.float32 and snapped.shape == latents.shape
    torch.testing.assert_close(snapped, torch.cat(expected, 1), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_point_stays(name: str) -> None:
    quantizer = QUANTIZERS[name].eval()
    with torch.no_grad():
        quantized = quantizer(torch.randn(2, quantizer.in_channels, 3, 2)).quantized
        with torch.autocast("cpu", torch.bfloat16):
            snapped = quantizer.snap(quantized)
    torch.testing.assert_close(snapped, quantized, atol=1e-6, rtol=0)


def test_a_tokenizer_snaps_by_its_quantizer() -> None:
    tokenizer, latents = tiny_tokenizer(), torch.randn(2, 8, 2, 2)
    assert torch.equal(tokenizer.snap(latents), tokenizer.quantizer.snap(latents))
    assert tokenizer.latent_shape == (8, 2, 2)


def test_a_continuous_bottleneck_has_no_points() -> None:
    with pytest.raises(UserError, match="ContinuousBottleneck has no points to snap latents to: set sampler.snap to f"):
        ContinuousBottleneck().snap(torch.zeros(1, 4, 1, 1))
