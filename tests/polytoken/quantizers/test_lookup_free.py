import itertools

import pytest
import torch
from torch import Tensor

from polytoken.quantizers import FactorizedQuantizer, LookupFreeQuantizer
from polytoken.quantizers.lookup_free import mean_code_probabilities


def codebook(bits: int, magnitude: float) -> Tensor:
    """All 2^bits code vectors in float64, the first bit the least significant."""
    signs = [list(reversed(row)) for row in itertools.product((-1.0, 1.0), repeat=bits)]
    return torch.tensor(signs, dtype=torch.float64) * magnitude


def reference(rows: Tensor, magnitude: float, temperature: float, diversity: float, group: int) -> Tensor:
    """E[H(p)] − γ Σ H(E[p_g]) from distances to every code, in float64."""
    entropy = torch.zeros((), dtype=torch.float64)
    for part in rows.split(group, dim=1):
        distances = (part[:, None] - codebook(group, magnitude)[None]).square().sum(-1)
        log_p = (-distances / temperature).log_softmax(-1)
        mean = log_p.exp().mean(0)
        entropy = entropy - (log_p.exp() * log_p).sum(-1).mean() + diversity * torch.special.xlogy(mean, mean).sum()
    return entropy


@pytest.mark.parametrize("sphere", [False, True])
@pytest.mark.parametrize("num_sub_codes", [1, 2, 3])
def test_codes_and_vectors_are_inverse(num_sub_codes: int, sphere: bool) -> None:
    torch.manual_seed(0)
    quantizer = LookupFreeQuantizer(6, num_sub_codes, sphere).eval()
    encoding = quantizer(torch.randn(2, 6, 4, 3))
    width = 6 // num_sub_codes
    assert quantizer.codebook_sizes == (2**width,) * num_sub_codes
    assert encoding.codes.shape == (2, num_sub_codes, 12) and encoding.codes.dtype == torch.int64
    assert 0 <= encoding.codes.min() and encoding.codes.max() < 2**width
    assert torch.allclose(quantizer.embed_codes(encoding.codes, (4, 3)), encoding.quantized, atol=1e-6)
    assert torch.allclose(encoding.quantized.abs(), torch.full((), 6**-0.5 if sphere else 1.0))
    for parts in (encoding.subspaces, encoding.latents):
        assert [part.shape for part in parts] == [(2, width, 4, 3)] * num_sub_codes
    if sphere:
        assert torch.allclose(torch.cat(encoding.latents, 1).norm(dim=1), torch.ones(()))
        assert torch.allclose(encoding.quantized.norm(dim=1), torch.ones(()))
    assert encoding.losses == {} and encoding.code_vectors == () and not quantizer.state_dict()


def test_codes_follow_magvit() -> None:
    """Σ 2^(i−1) 1{z_i > 0}; a zero counts as negative. The vectors are the nearest of all."""
    quantizer = LookupFreeQuantizer(3, 1).eval()
    latents = torch.tensor([0.5, -2.0, 0.1, 0.0, 1.0, -1.0]).view(2, 3, 1, 1)
    encoding = quantizer(latents)
    assert encoding.codes.flatten().tolist() == [1 + 4, 2]
    rows = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    nearest = torch.cdist(rows.double(), codebook(3, 1.0)).argmin(1)
    assert torch.equal(quantizer(rows[:, :, None, None]).codes.flatten(), nearest)


@pytest.mark.parametrize("max_matrix_elements", [1, 2**24])
@pytest.mark.parametrize(("bits", "num_sub_codes", "entropy_bits"), [(6, 1, None), (6, 2, None), (6, 1, 1), (8, 2, 2)])
@pytest.mark.parametrize("sphere", [False, True])
def test_entropy_equals_the_explicit_codebooks(
    sphere: bool, bits: int, num_sub_codes: int, entropy_bits: int | None, max_matrix_elements: int
) -> None:
    """Value and gradient against distances to every code, in float64."""
    quantizer = LookupFreeQuantizer(
        bits,
        num_sub_codes,
        sphere,
        commitment_weight=0.0,
        entropy_weight=1.0,
        diversity=1.5,
        temperature=0.8,
        entropy_bits=entropy_bits,
        max_matrix_elements=max_matrix_elements,
    )
    features = torch.randn(2, bits, 3, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    value = quantizer(features).losses["entropy"]
    slow = features.detach().double().requires_grad_()
    unit = torch.nn.functional.normalize(slow, dim=1) if sphere else slow
    rows = unit.permute(0, 2, 3, 1).flatten(0, 2)
    expected = reference(rows, bits**-0.5 if sphere else 1.0, 0.8, 1.5, entropy_bits or bits // num_sub_codes)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-5)
    (got,), (wanted,) = torch.autograd.grad(value, features), torch.autograd.grad(expected, slow)
    assert torch.allclose(got.double(), wanted, rtol=1e-4, atol=1e-6)


def test_entropy_of_saturated_rows_is_finite() -> None:
    """Probabilities of 0 and 1 (low temperature) have zero gradient and finite logarithms."""
    features = (1e4 * torch.randn(1, 6, 2, 2, generator=torch.Generator().manual_seed(0))).requires_grad_()
    encoding = LookupFreeQuantizer(6, 1, entropy_weight=1.0, commitment_weight=0.0)(features)
    share = encoding.codes.unique(return_counts=True)[1] / encoding.codes.numel()
    value = encoding.losses["entropy"]
    assert value.item() == pytest.approx((share * share.log()).sum().item()), "every row is saturated"
    (gradient,) = torch.autograd.grad(value, features)
    assert torch.isfinite(gradient).all()


def test_chunks_agree_and_probabilities_sum_to_one() -> None:
    logits = torch.randn(100, 6, generator=torch.Generator().manual_seed(0))
    whole = mean_code_probabilities(logits, 3, 2**24)
    assert whole.shape == (2, 8)
    assert torch.allclose(whole.sum(-1), torch.ones(2))
    assert torch.allclose(mean_code_probabilities(logits, 3, 48), whole, atol=1e-6)


@pytest.mark.parametrize("sphere", [False, True])
def test_commitment_and_straight_through_gradient(sphere: bool) -> None:
    torch.manual_seed(0)
    quantizer = LookupFreeQuantizer(4, 2, sphere, commitment_weight=0.25, entropy_weight=0.0)
    features = torch.randn(2, 4, 3, 3, requires_grad=True)
    encoding = quantizer(features)
    latents = torch.cat(encoding.latents, 1)
    expected = 0.25 * (latents - encoding.quantized.detach()).square().mean()
    assert encoding.losses.keys() == {"commitment"}
    assert encoding.losses["commitment"].item() == pytest.approx(expected.item(), rel=1e-5)
    weights = torch.randn_like(features)
    (wanted,) = torch.autograd.grad((weights * latents).sum(), features, retain_graph=True)
    (got,) = torch.autograd.grad((weights * encoding.quantized).sum(), features)
    assert torch.equal(got, wanted) and got.abs().sum() > 0


def test_precision_is_float32_under_autocast() -> None:
    torch.manual_seed(0)
    quantizer, latents = LookupFreeQuantizer(8, 2, sphere=True), torch.randn(1, 8, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        inside = quantizer(latents)
    outside = quantizer(latents)
    assert inside.quantized.dtype == torch.float32
    assert torch.equal(inside.codes, outside.codes)
    assert all(torch.equal(inside.losses[name], value) for name, value in outside.losses.items())


def test_works_as_a_branch() -> None:
    quantizer = FactorizedQuantizer(LookupFreeQuantizer(6, 2), 2).eval()
    encoding = quantizer(torch.randn(1, 12, 2, 2))
    assert quantizer.codebook_sizes == (8, 8, 8, 8)
    assert torch.allclose(quantizer.embed_codes(encoding.codes, (2, 2)), encoding.quantized, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bits": 18, "num_sub_codes": 1}, "sub-code of 262,144 values.*raise num_sub_codes"),
        ({"bits": 18, "num_sub_codes": 4}, "num_sub_codes=4 does not divide the 18 channels"),
        ({"bits": 18, "entropy_bits": 2}, "entropy_bits=2 does not divide the 9 bits"),
    ],
)
def test_invalid_arguments_are_rejected_with_a_remedy(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LookupFreeQuantizer(**arguments)


def test_any_number_of_bits() -> None:
    quantizer = LookupFreeQuantizer(128, 8)
    encoding = quantizer(torch.randn(1, 128, 2, 2))
    assert quantizer.codebook_sizes == (2**16,) * 8
    assert torch.isfinite(encoding.losses["entropy"])
