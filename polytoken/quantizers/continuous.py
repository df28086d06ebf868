"""Bottlenecks without codes: the plain autoencoder's, and the VAE's diagonal Gaussian (LDM, arXiv 2112.10752)."""

from __future__ import annotations

import torch
from torch import Tensor

from polytoken.errors import UserError
from polytoken.precision import full_precision
from polytoken.quantizers.base import Quantizer
from polytoken.ranges import at_least
from polytoken.specs import Encoding


class ContinuousBottleneck(Quantizer):
    """Passes d channels through, or samples them from d means and log-variances during training.

    In eval mode a posterior is represented by its mode, the mean.

    Args:
        code_dim: d.
        kl_weight: weight of KL(q(z|x) ‖ N(0, 1)), summed over the d·h·w latents of an image and averaged over images
            (1e-6 in LDM and in iFSQ's baselines); None is an autoencoder without posterior.
    """

    def __init__(self, code_dim: int = 4, kl_weight: float | None = None) -> None:
        at_least(1, self, code_dim=code_dim)
        at_least(0, self, kl_weight=kl_weight)
        super().__init__((code_dim if kl_weight is None else 2 * code_dim,), (code_dim,), ())
        self.kl_weight = kl_weight

    def forward(self, features: Tensor) -> Encoding:
        """Features (B, d or 2d, h, w) to latents (B, d, h, w) float32; a posterior's loss is ``kl``."""
        with full_precision(features.device):
            latents = features.float()
            if self.kl_weight is None:
                return Encoding(codes=None, quantized=latents, subspaces=(latents,), latents=(latents,))
            mean, log_variance = latents.chunk(2, dim=1)
            if not self.training:
                return Encoding(codes=None, quantized=mean, subspaces=(mean,), latents=(mean,))
            log_variance = log_variance.clamp(-30.0, 20.0)  # so that neither exp below can overflow
            sample = mean + (log_variance / 2).exp() * torch.randn_like(mean)
            losses = {"kl": self.kl_weight * gaussian_kl(mean, log_variance)}
        return Encoding(codes=None, quantized=sample, subspaces=(sample,), losses=losses, latents=(mean,))

    def embed_codes(self, codes: Tensor, grid: tuple[int, int]) -> Tensor:
        """Raise UserError: there is no codebook."""
        raise UserError(
            "a continuous bottleneck has no codes: pass its latents to decode, or train a tokenizer with codes"
        )


def gaussian_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(μ, σ²) ‖ N(0, 1)), summed over all but the batch and averaged over it; scalar."""
    per_latent = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
    return per_latent.flatten(1).sum(1).mean()
