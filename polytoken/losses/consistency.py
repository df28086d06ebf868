"""Consistency regularisation of a discriminator (arXiv 1910.12027, arXiv 2002.04724)."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional

from polytoken.discriminators import DiffAugment, Discriminator
from polytoken.ranges import at_least


@final
class Consistency(nn.Module):
    """Keeps the logits of two views of an image close: E[(D(w(x)) − D(s(x)))²] over real and reconstructed images.

    w is the augmentation of the adversarial block, or none; s is the strong one, DiffAugment with every operation and a
    cut-out square of half the side. Both views have a gradient. The published Ideal has no such term; its released code
    (Row11n/IDEAL) has it.

    Args:
        weight: factor of the term in the discriminator's loss; 4 in the released Ideal. The block's own weight does not
            multiply it.
    """

    def __init__(self, weight: float = 4.0) -> None:
        super().__init__()
        at_least(0, self, weight=weight)
        self.weight = weight
        self.strong = DiffAugment(probability=1.0, cutout=0.5)

    def forward(
        self, discriminator: Discriminator, views: tuple[Tensor, Tensor], logits: tuple[Tensor, Tensor]
    ) -> Tensor:
        """The unweighted scalar.

        Args:
            discriminator: the network.
            views: real and reconstructed images (B, 3, H, W), not augmented.
            logits: the discriminator's of their weak views, of any shape, float32.
        """
        strong = torch.cat([discriminator(self.strong(images)).float() for images in views])
        return functional.mse_loss(strong, torch.cat(logits))
