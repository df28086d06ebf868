"""Bottlenecks without codes: the plain autoencoder's, and the VAE's diagonal Gaussian (LDM, arXiv 2112.10752)."""

from __future__ import annotations

import torch
from torch import Tensor

from polytoken.errors import UserError
from polytoken.quantizers.base import LatentHead, Quantizer
from polytoken.specs import Encoding


class ContinuousBottleneck(Quantizer):
    """d channels as the encoder leaves them, or d means and log-variances drawn from in training.

    In eval mode a posterior is represented by its mode, the mean.

    Args:
        in_channels: width of the base features.
        code_dim: d.
        kl_weight: weight of KL(q(z|x) ‖ N(0, 1)), summed over the d·h·w latents of an image and averaged over images
            (1e-6 in LDM and in iFSQ's baselines); None is an autoencoder without posterior.
        latent_channels: channels between the base features and the 1 × 1 ``quant_conv``.
    """

    def __init__(
        self,
        in_channels: int = 512,
        code_dim: int = 4,
        kl_weight: float | None = None,
        latent_channels: int = 256,
    ) -> None:
        super().__init__(in_channels, (code_dim,), ())
        self.kl_weight = kl_weight
        self.head = LatentHead(in_channels, latent_channels, code_dim if kl_weight is None else 2 * code_dim)

    def forward(self, features: Tensor) -> Encoding:
        """Base features (B, in_channels, h, w) to latents (B, d, h, w) float32; the loss is ``kl``."""
        latents = self.head(features)
        with torch.autocast(latents.device.type, enabled=False):
            latents = latents.float()
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
        """Refuse: there is nothing to look up."""
        raise UserError(
            "a continuous bottleneck has no codes: give its latents to decode, or train a tokenizer with a quantizer"
        )


def gaussian_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(μ, σ²) ‖ N(0, 1)), summed over all but the batch and averaged over it; scalar."""
    per_latent = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
    return per_latent.flatten(1).sum(1).mean()
