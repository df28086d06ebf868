"""PatchGAN: one logit for each of many overlapping patches (pix2pix, arXiv 1611.07004)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from polytoken.discriminators.base import Discriminator
from polytoken.errors import UserError
from polytoken.ranges import at_least


class PatchDiscriminator(Discriminator, nn.Sequential):
    """4 × 4 convolutions with batch norm; (B, 3, 256, 256) to logits (B, 1, 30, 30) at the default depth.

    Args:
        base_channels: width of the first layer; doubles up to eightfold.
        num_layers: strided layers; 3 gives the usual receptive field of 70 pixels, 2 suits images of 32.
    """

    def __init__(self, base_channels: int = 64, num_layers: int = 3) -> None:
        at_least(1, self, base_channels=base_channels)
        at_least(0, self, num_layers=num_layers)
        layers: list[nn.Module] = [nn.Conv2d(3, base_channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        channels = base_channels
        for layer in range(1, num_layers + 1):
            wider = base_channels * min(2**layer, 8)
            stride = 2 if layer < num_layers else 1
            layers += [
                nn.Conv2d(channels, wider, 4, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(wider),
                nn.LeakyReLU(0.2),
            ]
            channels = wider
        super().__init__(*layers, nn.Conv2d(channels, 1, 4, padding=1))
        self.apply(_initialise)
        self.to(memory_format=torch.channels_last)  # the layout convolutions are fastest in, on CPU and GPU

    def check_size(self, size: int) -> None:
        side = size
        convolutions = [layer for layer in self if isinstance(layer, nn.Conv2d)]
        for layer in convolutions:
            side = (side - 2) // layer.stride[0] + 1  # 4 × 4 with padding 1
        if side < 1:
            raise UserError(
                f"PatchDiscriminator has num_layers {len(convolutions) - 2}, which leaves no patch of images of {size} "
                "pixels a side: lower it"
            )

    def forward(self, images: Tensor) -> Tensor:
        return nn.Sequential.forward(self, images)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
