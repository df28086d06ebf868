import pytest
import torch
from torch.distributions import Normal, kl_divergence

from polytoken.quantizers import ContinuousBottleneck
from polytoken.quantizers.continuous import gaussian_kl
from polytoken.tokenizers import ConvolutionalTokenizer


def test_autoencoder_passes_its_latents_through() -> None:
    bottleneck, features = ContinuousBottleneck(code_dim=3), torch.randn(2, 3, 4, 4)
    encoding = bottleneck(features)
    assert torch.equal(encoding.quantized, features)
    assert encoding.quantized.shape == (2, 3, 4, 4) == (2, bottleneck.out_channels, 4, 4)
    assert encoding.codes is None and encoding.losses == {}


def test_posterior_is_sampled_in_training_and_its_mode_in_eval() -> None:
    torch.manual_seed(0)
    bottleneck, features = ContinuousBottleneck(kl_weight=1e-6, code_dim=2), 0.3 * torch.randn(2, 4, 4, 4)
    mean, log_variance = features.chunk(2, 1)
    draws = torch.stack([bottleneck(features).quantized for _ in range(4000)])
    assert torch.allclose(draws.mean(0), mean, atol=0.15)
    assert torch.allclose(draws.std(0), (log_variance / 2).exp(), rtol=0.1)
    encoding = bottleneck.eval()(features)
    assert torch.equal(encoding.quantized, mean)
    assert encoding.losses == {} and encoding.codes is None


def test_kl_is_summed_over_latents_and_averaged_over_images() -> None:
    mean, log_variance = torch.randn(3, 2, 4, 5), torch.randn(3, 2, 4, 5)
    expected = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)).sum((1, 2, 3)).mean()
    assert gaussian_kl(mean, log_variance).item() == pytest.approx(expected.item(), rel=1e-5)
    bottleneck, features = ContinuousBottleneck(kl_weight=0.25), torch.randn(2, 8, 4, 4)
    got = bottleneck(features).losses["kl"]
    assert got.item() == pytest.approx(0.25 * gaussian_kl(*features.chunk(2, 1)).item(), rel=1e-5)


@pytest.mark.parametrize("log_variance", [-1e4, 1e4])
def test_extreme_log_variances_stay_finite(log_variance: float) -> None:
    bottleneck = ContinuousBottleneck(kl_weight=1.0, code_dim=1)
    features = torch.cat([torch.randn(1, 1, 2, 2), torch.full((1, 1, 2, 2), log_variance)], dim=1)
    encoding = bottleneck(features)
    assert torch.isfinite(encoding.quantized).all() and torch.isfinite(encoding.losses["kl"])
    assert encoding.losses["kl"].item() >= (4 * 0.5 * 29 if log_variance < 0 else 4 * 0.5 * (2.718**20 - 21))


def test_works_in_float32_under_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        encoding = ContinuousBottleneck(kl_weight=1.0)(torch.randn(1, 8, 2, 2))
    assert encoding.quantized.dtype == encoding.losses["kl"].dtype == torch.float32


def test_a_tokenizer_with_it_has_no_codes() -> None:
    tokenizer = ConvolutionalTokenizer(
        ContinuousBottleneck(),
        image_size=16,
        base_channels=32,
        channel_multipliers=(1, 1),
        num_res_blocks=1,
        attention=False,
    )
    assert tokenizer.spec is None
    with pytest.raises(ValueError, match="a continuous bottleneck has no codes"):
        tokenizer.decode_codes(torch.zeros(1, 1, 64, dtype=torch.int64))
