"""EfficientNet-Lite2 as an extractor: a network trained on ImageNet, installed like any package."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from polytoken.files import file_sha256
from polytoken.images import from_uint8
from polytoken.metrics.extractor import ImageFeatures, check_images
from polytoken.precision import full_precision
from polytoken.teachers.efficientnet import EFFICIENTNETS, HEAD, MEASURES, level_maps, load_efficientnet


class EfficientNet:
    """Extractor over EfficientNet-Lite2: the 1,280 features that its classifier reads, in float32.

    Its classes are those of ImageNet and not of the data, so it gives no logits.

    Args:
        device: device of the network.

    Raises:
        MissingFileError: if the extra ``vision`` is not installed.
    """

    name = MEASURES
    num_features = 1280
    num_classes = None
    num_spatial = None

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._weights = EFFICIENTNETS[MEASURES]
        self._network = load_efficientnet(MEASURES).to(device)

    @property
    def resize(self) -> str:
        return f"bicubic, antialiased, to {self._weights.image_size} px"

    @cached_property
    def sha256(self) -> str:
        return file_sha256(self._weights.path)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> ImageFeatures:
        check_images(images)
        size = (self._weights.image_size, self._weights.image_size)
        with full_precision(self.device):
            inputs = from_uint8(images.to(self.device).contiguous())
            if tuple(inputs.shape[-2:]) != size:
                inputs = functional.interpolate(inputs, size, mode="bicubic", antialias=True).clamp(-1, 1)
            (last,) = level_maps(self._network, inputs, [HEAD])
            return ImageFeatures(last.mean((2, 3)))
