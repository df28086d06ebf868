"""Small classifier of the embedded data: the judge in place of Inception, or a perceptual network in place of VGG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TypedDict

from msgspec import Meta
from torch import Tensor, nn

from polytoken.blocks import NormSwish
from polytoken.errors import UserError
from polytoken.ranges import at_least
from polytoken.records import decode
from polytoken.weights import MAKE_TEACHER, load_state, rebuild, save_state

Width = Annotated[int, Meta(ge=4, le=8192, multiple_of=4)]


class Metadata(TypedDict):
    """The header of a file of :meth:`SmallClassifier.save`."""

    num_classes: Annotated[int, Meta(ge=1, le=1_000_000)]
    widths: Annotated[list[Width], Meta(min_length=1, max_length=12)]


class SmallClassifier(nn.Module):
    """Strided convolution stages, average pooling and a linear layer.

    Args:
        num_classes: number of logits.
        widths: channels of each stage, multiples of 4; every stage halves the resolution.
    """

    def __init__(self, num_classes: int = 10, widths: Sequence[int] = (32, 64, 128)) -> None:
        super().__init__()
        at_least(1, self, num_classes=num_classes, widths=widths)
        self.num_classes = num_classes
        self.widths = tuple(widths)
        channels = [3, *self.widths]
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels[i], channels[i + 1], 3, stride=2, padding=1),
                NormSwish(channels[i + 1]),
                nn.Conv2d(channels[i + 1], channels[i + 1], 3, padding=1),
                NormSwish(channels[i + 1]),
            )
            for i in range(len(self.widths))
        )
        self.linear = nn.Linear(channels[-1], num_classes)

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) in [-1, 1] to each stage's map (B, widths[i], H / 2^(i+1), W / 2^(i+1))."""
        maps = []
        features = images
        for stage in self.stages:
            features = stage(features)
            maps.append(features)
        return maps

    def embed(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) to pooled features (B, widths[-1])."""
        return self.feature_maps(images)[-1].mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] to logits (B, num_classes)."""
        return self.linear(self.embed(images))

    def save(self, path: str | Path, accuracy: float) -> None:
        """Write safetensors that :meth:`load` reads, with the validation accuracy in the header."""
        metadata = {"num_classes": self.num_classes, "widths": list(self.widths), "accuracy": accuracy}
        save_state(path, self, metadata)

    @classmethod
    def load(cls, path: str | Path) -> SmallClassifier:
        """The classifier in a file of :meth:`save`, in eval mode and without gradients of its weights."""
        state, metadata = load_state(path, MAKE_TEACHER)
        if "widths" not in metadata:
            raise UserError(f"{path} was not written by SmallClassifier.save: {MAKE_TEACHER}")
        header = decode(metadata, Metadata, f"the header of {path}")
        return rebuild(lambda: cls(header["num_classes"], header["widths"]), state, path, MAKE_TEACHER)
