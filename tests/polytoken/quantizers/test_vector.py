import pytest
import torch
from torch.nn import functional

from polytoken.quantizers.vector import VectorQuantizer, entropy_gap, nearest_codes


def brute_force(rows: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """Nearest codes by squared distances in float64."""
    difference = rows.double()[:, None] - codebook.double()[None]
    return difference.square().sum(-1).argmin(-1)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("max_matrix_elements", [1, 1000, 2**24])
def test_codes_equal_brute_force(normalize: bool, max_matrix_elements: int) -> None:
    generator = torch.Generator().manual_seed(1)
    rows, codebook = torch.randn(300, 8, generator=generator), torch.randn(1024, 8, generator=generator)
    if normalize:
        rows, codebook = functional.normalize(rows, dim=-1), functional.normalize(codebook, dim=-1)
    assert torch.equal(nearest_codes(rows, codebook, max_matrix_elements), brute_force(rows, codebook))


def test_codes_equal_brute_force_at_full_size() -> None:
    torch.manual_seed(0)
    quantizer = VectorQuantizer(16384, 8).eval()
    latents = torch.randn(2, 8, 16, 16)
    rows = functional.normalize(latents.double().permute(0, 2, 3, 1).flatten(0, 2), dim=-1)
    expected = torch.cat([brute_force(chunk, quantizer.codebook) for chunk in rows.split(64)])
    assert torch.equal(quantizer(latents).codes.flatten(), expected)


def test_look_up_never_holds_more_than_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    addmm = torch.addmm

    def spy(*args: torch.Tensor, **kwargs: float) -> torch.Tensor:
        product = addmm(*args, **kwargs)
        sizes.append(product.numel())
        return product

    monkeypatch.setattr(torch, "addmm", spy)
    nearest_codes(torch.randn(1000, 4), torch.randn(64, 4), max_matrix_elements=640)
    assert max(sizes) <= 640
    assert sum(sizes) == 1000 * 64


def test_precision_is_float32_under_autocast() -> None:
    torch.manual_seed(0)
    quantizer = VectorQuantizer(512, 8).eval()
    latents = torch.randn(1, 8, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        inside = quantizer(latents)
    assert inside.quantized.dtype == torch.float32
    assert torch.equal(inside.codes, quantizer(latents).codes)


def test_losses_and_straight_through_gradient() -> None:
    torch.manual_seed(0)
    quantizer = VectorQuantizer(32, 4, commitment_weight=0.25)
    latents = torch.randn(2, 4, 3, 3, requires_grad=True)
    result = quantizer(latents)
    unit = functional.normalize(latents.detach().double(), dim=1)
    expected = (result.code_vectors[0].detach().double() - unit).square().mean()
    assert result.losses["codebook"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert result.losses["commitment"].item() == pytest.approx(0.25 * expected.item(), rel=1e-5)
    assert torch.allclose(result.quantized, result.code_vectors[0])

    codebook = quantizer.embedding.weight
    assert (
        torch.autograd.grad(result.quantized.sum(), [latents, codebook], retain_graph=True, allow_unused=True)[1]
        is None
    )
    assert torch.autograd.grad(result.losses["codebook"], latents, retain_graph=True, allow_unused=True)[0] is None
    assert torch.autograd.grad(result.losses["commitment"], codebook, retain_graph=True, allow_unused=True)[0] is None
    assert torch.autograd.grad(result.losses["codebook"], codebook)[0].abs().sum() > 0


def test_eval_mode_returns_no_losses() -> None:
    assert VectorQuantizer(16, 4).eval()(torch.randn(1, 4, 2, 2)).losses == {}


@pytest.mark.parametrize("max_matrix_elements", [16, 2**20])
def test_entropy_equals_float64_reference_in_value_and_gradient(max_matrix_elements: int) -> None:
    generator = torch.Generator().manual_seed(3)
    rows = functional.normalize(torch.randn(50, 8, generator=generator), dim=-1)
    codebook = functional.normalize(torch.randn(16, 8, generator=generator), dim=-1)

    def reference(rows: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
        distance = (rows[:, None] - codebook[None]).square().sum(-1)
        log_probability = (-distance / 0.05).log_softmax(-1)
        probability = log_probability.exp()
        mean = probability.mean(0)
        return -(probability * log_probability).sum(-1).mean() + (mean * (mean + 1e-5).log()).sum()

    ours = [rows.clone().requires_grad_(), codebook.clone().requires_grad_()]
    slow = [rows.double().requires_grad_(), codebook.double().requires_grad_()]
    value = entropy_gap(*ours, 0.05, max_matrix_elements)
    expected = reference(*slow)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    for got, wanted in zip(torch.autograd.grad(value, ours), torch.autograd.grad(expected, slow), strict=True):
        assert torch.allclose(got.double(), wanted, rtol=1e-4, atol=1e-6)


def test_the_entropy_is_computed_again_in_full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Backward runs outside of the context of the look-up, where a fit on a GPU allows TF32."""
    seen, softmax = [], torch.Tensor.softmax

    def spy(logits: torch.Tensor, *arguments: object) -> torch.Tensor:
        seen.append((torch.get_float32_matmul_precision(), torch.is_autocast_enabled("cpu")))
        return softmax(logits, *arguments)

    monkeypatch.setattr(torch.Tensor, "softmax", spy)
    torch.set_float32_matmul_precision("high")
    try:
        losses = VectorQuantizer(16, 4, entropy_weight=1.0)(torch.randn(1, 4, 2, 2)).losses
        losses["entropy"].backward()
    finally:
        torch.set_float32_matmul_precision("highest")
    assert seen == [("highest", False)] * 2


def test_embed_codes_inverts_the_forward() -> None:
    torch.manual_seed(0)
    quantizer = VectorQuantizer(64, 4).eval()
    result = quantizer(torch.randn(2, 4, 3, 5))
    assert torch.allclose(quantizer.embed_codes(result.codes, (3, 5)), result.code_vectors[0])
    assert torch.equal(result.subspaces[0], result.quantized) and result.codes.shape == (2, 1, 15)
