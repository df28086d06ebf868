"""The adversarial block: discriminator, loss form, start and weight (VQGAN, arXiv 2012.09841)."""

from __future__ import annotations

from typing import Literal, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from polytoken.distributed import mean_over_ranks
from polytoken.losses.base import TokenizerStep

Form = Literal["hinge", "vanilla", "non_saturating"]


@final
class Adversarial(nn.Module):
    """Generator and discriminator losses of one discriminator.

    ``weight`` multiplies both losses, as in LlamaGen. Before ``start_step`` neither network sees the other: the
    discriminator is not run at all; released code runs it with weight 0, which moves no weight. Batch norm in the
    discriminator looks at each rank's own batch, unless the trainer's ``sync_batchnorm`` is on (GPUs only).

    Args:
        discriminator: images to logits.
        form: hinge; vanilla (cross-entropy discriminator, the generator raises its logits, as in VQGAN); or
            non_saturating (cross-entropy for both).
        start_step: updates before which the block is off.
        weight: factor of both losses.
        adaptive: scale the generator's part by ‖∇ reconstruction‖ / ‖∇ adversarial‖ at the decoder's last layer, both
            gradients being those of all ranks together.
    """

    def __init__(
        self,
        discriminator: nn.Module,
        form: Form = "hinge",
        start_step: int = 20000,
        weight: float = 0.5,
        adaptive: bool = False,
    ) -> None:
        super().__init__()
        self.discriminator = discriminator
        self.form: Form = form
        self.start_step = start_step
        self.weight = weight
        self.adaptive = adaptive

    def active(self, step: int) -> bool:
        """Whether the block takes part in this update."""
        return step >= self.start_step

    def generator_loss(self, step: TokenizerStep, reconstruction_loss: Tensor) -> Tensor:
        """Weighted scalar that rewards reconstructions the discriminator takes for real.

        Args:
            step: the step.
            reconstruction_loss: reconstruction plus perceptual loss, which the adaptive weight compares with.
        """
        loss = generator_loss(self.discriminator(step.reconstruction).float(), self.form)
        if self.adaptive:
            loss = loss * adaptive_weight(reconstruction_loss, loss, step.last_layer)
        return self.weight * loss

    def discriminator_loss(self, step: TokenizerStep) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted scalar, and the mean logits of real and reconstructed images for the log."""
        real = self.discriminator(step.images).float()
        fake = self.discriminator(step.reconstruction.detach()).float()
        logits = {"logits_real": real.detach().mean(), "logits_fake": fake.detach().mean()}
        return self.weight * discriminator_loss(real, fake, self.form), logits


def generator_loss(fake: Tensor, form: Form) -> Tensor:
    """Loss of the generator from the logits of its images; scalar."""
    return functional.softplus(-fake).mean() if form == "non_saturating" else -fake.mean()


def discriminator_loss(real: Tensor, fake: Tensor, form: Form) -> Tensor:
    """Loss of the discriminator from its logits of real and generated images; scalar."""
    if form == "hinge":
        return 0.5 * (functional.relu(1 - real).mean() + functional.relu(1 + fake).mean())
    return 0.5 * (functional.softplus(-real).mean() + functional.softplus(fake).mean())


def adaptive_weight(reconstruction_loss: Tensor, adversarial_loss: Tensor, last_layer: nn.Parameter) -> Tensor:
    """λ = ‖∇ L_rec‖ / (‖∇ L_adv‖ + 1e-4) at the last layer, at most 1e4, no gradient (VQGAN eq. 7).

    The gradients are averaged over ranks, as those are that DDP applies: norms of each rank's own would be larger.
    """
    gradients = [
        torch.autograd.grad(loss, last_layer, retain_graph=True)[0].float()
        for loss in (reconstruction_loss, adversarial_loss)
    ]
    reconstruction_gradient, adversarial_gradient = mean_over_ranks(torch.stack(gradients))
    ratio = reconstruction_gradient.norm() / (adversarial_gradient.norm() + 1e-4)
    return ratio.clamp(0.0, 1e4).detach()
