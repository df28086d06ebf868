"""Adversarial block: discriminator, form of the loss, start and weight (L_GAN; VQGAN, arXiv 2012.09841)."""

from __future__ import annotations

from typing import Literal, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from polytoken.discriminators import DiffAugment, Discriminator
from polytoken.distributed import mean_over_ranks
from polytoken.losses.base import TokenizerStep
from polytoken.losses.consistency import Consistency
from polytoken.losses.lecam import LeCam
from polytoken.ranges import at_least

Form = Literal["hinge", "vanilla", "non_saturating"]


@final
class Adversarial(nn.Module):
    """Losses of the autoencoder (L_GAN of SSQ eq. 2 and FQGAN eq. 2) and of its discriminator.

    ``weight`` multiplies both losses, as in LlamaGen, but not the consistency term. The discriminator does not run
    before ``start_step``; released code runs it with weight 0, so that batch statistics and weight decay already act on
    it. Batch norm in the discriminator uses the batch of each rank, unless the trainer's ``sync_batchnorm`` is on (GPUs
    only).

    Args:
        discriminator: images to logits.
        form: hinge; vanilla (cross-entropy for the discriminator, and the autoencoder raises its logits, as in VQGAN);
            or non_saturating (cross-entropy for both).
        autoencoder_form: another form for the autoencoder's loss; None takes ``form``.
        start_step: updates before which the block is off.
        weight: factor of both losses.
        adaptive: scale the autoencoder's loss by ‖∇ reconstruction‖ / ‖∇ adversarial‖ at the decoder's last layer
            (VQGAN eq. 7), both gradients averaged over ranks.
        augmentation: differentiable augmentation of all images that the discriminator sees, real and reconstructed, in
            the losses of both networks; None is off.
        lecam: LeCam regularisation of the discriminator; None is off.
        consistency: consistency regularisation of the discriminator; None is off.
    """

    def __init__(
        self,
        discriminator: Discriminator,
        form: Form = "hinge",
        autoencoder_form: Form | None = None,
        start_step: int = 20000,
        weight: float = 0.5,
        adaptive: bool = False,
        augmentation: DiffAugment | None = None,
        lecam: LeCam | None = None,
        consistency: Consistency | None = None,
    ) -> None:
        super().__init__()
        at_least(0, self, start_step=start_step, weight=weight)
        self.discriminator = discriminator
        self.form: Form = form
        self.autoencoder_form: Form = autoencoder_form or form
        self.start_step = start_step
        self.weight = weight
        self.adaptive = adaptive
        self.augmentation = augmentation
        self.lecam = lecam
        self.consistency = consistency

    def active(self, global_step: int) -> bool:
        """Return True if the block takes part in this update."""
        return global_step >= self.start_step

    def generator_loss(self, step: TokenizerStep, reconstruction_loss: Tensor) -> Tensor:
        """Weighted loss of the autoencoder; scalar.

        Args:
            step: the step.
            reconstruction_loss: reconstruction plus perceptual loss, which the adaptive weight compares with.
        """
        loss = generator_loss(self._logits(step.decoded.image), self.autoencoder_form)
        if self.adaptive:
            loss = loss * adaptive_weight(reconstruction_loss, loss, step.last_layer)
        return self.weight * loss

    def discriminator_loss(self, step: TokenizerStep) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted loss of the discriminator (scalar), and scalars for the log."""
        images = step.images, step.decoded.image.detach()
        real, fake = map(self._logits, images)
        loss = discriminator_loss(real, fake, self.form)
        logged = {"logits_real": real.detach().mean(), "logits_fake": fake.detach().mean()}
        if self.lecam is not None:
            logged["lecam"] = self.lecam(real, fake)
            loss = loss + self.lecam.weight * logged["lecam"]
        loss = self.weight * loss
        if self.consistency is not None:
            logged["consistency"] = self.consistency(self.discriminator, images, (real, fake))
            loss = loss + self.consistency.weight * logged["consistency"]
        return loss, logged

    def _logits(self, images: Tensor) -> Tensor:
        if self.augmentation is not None:
            images = self.augmentation(images)
        return self.discriminator(images).float()


def generator_loss(fake: Tensor, form: Form) -> Tensor:
    """Scalar loss of the autoencoder from the logits of its images."""
    return functional.softplus(-fake).mean() if form == "non_saturating" else -fake.mean()


def discriminator_loss(real: Tensor, fake: Tensor, form: Form) -> Tensor:
    """Scalar loss of the discriminator from its logits of real and reconstructed images."""
    if form == "hinge":
        return 0.5 * (functional.relu(1 - real).mean() + functional.relu(1 + fake).mean())
    return 0.5 * (functional.softplus(-real).mean() + functional.softplus(fake).mean())


def adaptive_weight(reconstruction_loss: Tensor, adversarial_loss: Tensor, last_layer: nn.Parameter) -> Tensor:
    """λ = ‖∇ L_rec‖ / (‖∇ L_adv‖ + 1e-4) at the last layer, at most 1e4, a scalar without gradient (VQGAN eq. 7).

    The gradients are averaged over ranks before their norms are taken, as DDP averages those it applies.
    """
    gradients = [
        torch.autograd.grad(loss, last_layer, retain_graph=True)[0].float()
        for loss in (reconstruction_loss, adversarial_loss)
    ]
    reconstruction_gradient, adversarial_gradient = mean_over_ranks(torch.stack(gradients))
    ratio = reconstruction_gradient.norm() / (adversarial_gradient.norm() + 1e-4)
    return ratio.clamp(0.0, 1e4).detach()
