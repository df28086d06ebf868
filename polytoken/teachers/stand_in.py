"""Small vision transformer that replaces CLIP and DINOv2 on the embedded data (`make teacher` trains it)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

from msgspec import Meta
from torch import Tensor, nn

from polytoken.errors import UserError
from polytoken.records import decode
from polytoken.weights import MAKE_TEACHER, load_state, read_metadata, rebuild, save_state

Pooling = Literal["token", "mean", "attention"]
TIMM_POOLING: dict[Pooling, Literal["token", "avg", "map"]] = {"token": "token", "mean": "avg", "attention": "map"}

Size = Annotated[int, Meta(ge=1, le=8192)]


class Architecture(TypedDict):
    """The arguments of the network, in the header of a file of :meth:`SmallVisionTransformer.save`."""

    image_size: Size
    patch_size: Size
    width: Size
    depth: Annotated[int, Meta(ge=1, le=100)]
    num_heads: Size
    pooling: Pooling
    num_classes: Annotated[int, Meta(ge=0, le=1_000_000)]


class SmallVisionTransformer(nn.Module):
    """timm's vision transformer with a few hundred thousand parameters, so that all teachers share one code path.

    Args:
        image_size: side of the images, in pixels.
        patch_size: side of a patch, in pixels.
        width: D of its features.
        depth: number of blocks.
        num_heads: attention heads.
        pooling: of the patches: ``token`` prepends a class token, ``attention`` is SigLIP's, by one learned query.
        num_classes: logits of a linear head on the pooled features; 0 is no head.
    """

    def __init__(
        self,
        image_size: int = 32,
        patch_size: int = 8,
        width: int = 96,
        depth: int = 4,
        num_heads: int = 4,
        pooling: Pooling = "token",
        num_classes: int = 0,
    ) -> None:
        super().__init__()
        from timm.models import VisionTransformer

        self.architecture: Architecture = {
            "image_size": image_size,
            "patch_size": patch_size,
            "width": width,
            "depth": depth,
            "num_heads": num_heads,
            "pooling": pooling,
            "num_classes": num_classes,
        }
        self.width = width
        self.patch_size = patch_size
        self.trunk = VisionTransformer(
            img_size=image_size,
            patch_size=patch_size,
            embed_dim=width,
            depth=depth,
            num_heads=num_heads,
            class_token=pooling == "token",
            global_pool=TIMM_POOLING[pooling],
            fc_norm=False,  # average pooling would otherwise move the last norm behind the pooling
            num_classes=num_classes,
        )

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] to logits; without a head to pooled features (B, D)."""
        return self.trunk(images)

    def patches(self, images: Tensor) -> Tensor:
        """Features (B, h·w, D) of the patches of images (B, 3, H, W) in [-1, 1], behind the last norm."""
        return self.trunk.forward_features(images)[:, self.trunk.num_prefix_tokens :]

    def save(self, path: str | Path, accuracy: float | None = None) -> None:
        """Write safetensors that :meth:`load` reads; a classifier's validation accuracy goes into the header."""
        measured = {} if accuracy is None else {"accuracy": accuracy}
        save_state(path, self, {"architecture": self.architecture, **measured})

    @classmethod
    def load(cls, path: str | Path) -> SmallVisionTransformer:
        """The frozen network in a file of :meth:`save`: eval mode, no gradients.

        Raises:
            MissingFileError: it is missing.
            UserError: the file is not a stand-in.
        """
        state, metadata = load_state(path, MAKE_TEACHER)
        architecture = _architecture(metadata, path)
        return rebuild(lambda: cls(**architecture), state, path, MAKE_TEACHER)


def read_architecture(path: str | Path) -> Architecture:
    """Arguments of the :class:`SmallVisionTransformer` in a file; its weights are not read."""
    return _architecture(read_metadata(path, MAKE_TEACHER), path)


def _architecture(metadata: Mapping[str, Any], path: str | Path) -> Architecture:
    if "architecture" not in metadata:
        raise UserError(f"{path} is not a stand-in teacher (its header names no architecture): {MAKE_TEACHER}")
    header = metadata["architecture"]
    if isinstance(header, dict) and "class_token" in header:  # files from before pooling by attention
        header = {**header, "pooling": "token" if header["class_token"] else "mean"}
    return decode(header, Architecture, f"the header of {path}")
