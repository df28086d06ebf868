"""Flow matching: the velocity of a straight path from noise to data, and its loss (iFSQ eq. 9, LightningDiT)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from polytoken.precision import full_precision
from polytoken.ranges import at_least, one_of
from polytoken.sampling import RowNoise

Times = Literal["logit_normal", "uniform"]
COSINE_EPSILON = 0.1


@dataclass(frozen=True)
class FlowMatching:
    """Velocity loss on x_t = t · x₁ + (1 − t) · x₀, with data x₁ at t = 1 and noise x₀ at t = 0 (iFSQ eq. 9).

    The direction is that of iFSQ and LightningDiT; SiT and REPA count t the other way.

    Args:
        times: distribution of t in training: ``logit_normal``, the sigmoid of a standard normal number, or ``uniform``.
        cosine_weight: of 1 − cos(v̂, v) over the channels, which LightningDiT adds to the squared error; 0 leaves it
            out.
    """

    times: Times = "logit_normal"
    cosine_weight: float = 1.0

    def __post_init__(self) -> None:
        one_of("flow", get_args(Times), times=self.times)
        at_least(0, "flow", cosine_weight=self.cosine_weight)

    def draw(self, latents: Tensor, training: bool) -> tuple[Tensor, Tensor]:
        """Return times (B,) and noise of the shape of the latents (B, C, h, w), both float32.

        In training they come from torch's global generator. Otherwise they depend on the row's place in its batch
        alone: times are the quantiles (i + 0.5) / B of the distribution and noise is a RowNoise, so that the loss of
        the same batches is the same number every time.
        """
        batch, device = len(latents), latents.device
        if training:
            shares = torch.rand(batch, device=device)
            noise = torch.randn(latents.shape, device=device)
        else:
            shares = (torch.arange(batch, dtype=torch.float32, device=device) + 0.5) / batch
            noise = RowNoise(0, 0, batch, device).normal((0,), *latents.shape[1:]).float()
        return self.quantile(shares), noise

    def quantile(self, shares: Tensor) -> Tensor:
        """Return the times below which these shares of all times lie."""
        return shares if self.times == "uniform" else torch.special.ndtri(shares).sigmoid()

    def loss(self, predicted: Tensor, latents: Tensor, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return total and parts, ``velocity`` and ``cosine``, for a predicted velocity (B, C, h, w).

        In float32. Norms below 0.1 count as 0.1 in the cosine: the network begins with a velocity of zero, where the
        cosine's gradient is as large as the inverse of that bound, and Adam would remember a larger one for long.
        """
        with full_precision(predicted.device):
            predicted, target = predicted.float(), latents.float() - noise
            parts = {"velocity": functional.mse_loss(predicted, target)}
            if self.cosine_weight:
                parts["cosine"] = 1 - functional.cosine_similarity(predicted, target, dim=1, eps=COSINE_EPSILON).mean()
            return parts["velocity"] + self.cosine_weight * parts.get("cosine", 0.0), parts


def interpolate(latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
    """Return x_t (B, C, h, w) in float32: the noise at t = 0, the data at t = 1."""
    times = times.float().view(-1, 1, 1, 1)
    return times * latents.float() + (1 - times) * noise.float()
