"""LeCam regularisation of a discriminator (arXiv 2104.03310)."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional

from polytoken.distributed import mean_over_ranks
from polytoken.ranges import at_least, below_one


@final
class LeCam(nn.Module):
    """Keeps logits close to the moving average of the opposite class: R = E[(D(x) − α_F)₊²] + E[(α_R − D(x̂))₊²].

    α_R and α_F are moving averages of the mean logits of real and reconstructed images over all ranks, updated before
    use. The paper has the plain squares; the positive part is that of the authors' code and of ImageFolder, and both
    agree where real logits exceed α_F and fake ones stay below α_R.

    Args:
        weight: factor relative to the discriminator's loss; 0.001 in ImageFolder.
        decay: of the moving averages, which start at 0.
    """

    averages: Tensor

    def __init__(self, weight: float = 0.001, decay: float = 0.999) -> None:
        super().__init__()
        at_least(0, self, weight=weight)
        below_one(self, decay=decay)
        self.weight = weight
        self.decay = decay
        # A buffer, so that checkpoints hold it. DDP overwrites buffers with those of rank 0, which are equal.
        self.register_buffer("averages", torch.zeros(2))

    def forward(self, real: Tensor, fake: Tensor) -> Tensor:
        """Update the averages, and return the unweighted scalar.

        Args:
            real: logits of real images, of any shape, float32.
            fake: logits of reconstructed images, of any shape, float32.
        """
        means = mean_over_ranks(torch.stack([real.mean(), fake.mean()]))
        self.averages.lerp_(means, 1 - self.decay)
        average_real, average_fake = self.averages.clone()
        above, below = functional.relu(real - average_fake), functional.relu(average_real - fake)
        return above.square().mean() + below.square().mean()
