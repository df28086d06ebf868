"""An extractor without weights, and images for it."""

import torch
from torch import Tensor

from polytoken.metrics.extractor import ImageFeatures, check_images


def images(number: int = 24) -> Tensor:
    """Random images, uint8 (number, 3, 8, 8)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (number, 3, 8, 8), dtype=torch.uint8, generator=generator)


class MeanColours:
    """Mean colours as features and as logits; four pixels as maps."""

    name = "mean_colours"
    num_features = 3
    num_classes = 3
    num_spatial = 4
    resize = "none"
    sha256 = "0" * 64
    device = torch.device("cpu")

    def __call__(self, images: Tensor) -> ImageFeatures:
        """Images uint8 (B, 3, H, W) to all three."""
        check_images(images)
        colours = images.float().mean((2, 3)) / 128
        return ImageFeatures(colours, colours * 20, images[:, 0, :2, :2].flatten(1).float())
