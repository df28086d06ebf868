"""Features of a frozen tokenizer by name, as probes read them.

`before/<i>` and `after/<i>` are those of a subspace before and after its quantization, `before/all` and `after/all`
those of all subspaces, concatenated. A tokenizer on a foundation model adds `foundation/<name>`, what that model
computes of the image, and `decoded/<name>`, what the tokenizer reconstructs of it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from polytoken.errors import UserError
from polytoken.precision import full_precision
from polytoken.specs import Encoding
from polytoken.tokenizers import Tokenizer

ALL = "all"


def feature_names(tokenizer: Tokenizer) -> list[str]:
    """Names of all features of a tokenizer."""
    subspaces = [ALL, *map(str, range(len(tokenizer.subspace_channels)))]
    reconstructed = tokenizer.feature_names
    return [
        *(f"{side}/{name}" for side in ("before", "after") for name in subspaces),
        *(f"{side}/{name}" for side in ("foundation", "decoded") for name in reconstructed),
    ]


def check_feature(tokenizer: Tokenizer, name: str, where: str) -> None:
    """Raise UserError if a tokenizer has no feature of this name; ``where`` is its place, for the message."""
    if name not in (names := feature_names(tokenizer)):
        raise UserError(f"there is no feature '{name}' in {where}: choose one of {', '.join(names)}")


@torch.no_grad()
def features_of(tokenizer: Tokenizer, images: Tensor, *names: str) -> list[Tensor]:
    """Features (B, D, h, w) of images (B, 3, H, W), one a name, in float32 and from one pass."""
    with full_precision(images.device):
        encoding = tokenizer.encode(images.float())
        decodes = any(name.startswith("decoded/") for name in names)
        decoded = tokenizer.decode(encoding.quantized).features if decodes else {}
        return [_feature(encoding, decoded, name) for name in names]


def _feature(encoding: Encoding, decoded: dict[str, Tensor], name: str) -> Tensor:
    side, _, part = name.partition("/")
    if side in ("foundation", "decoded"):
        return (encoding.features if side == "foundation" else decoded)[part].float()
    maps = encoding.latents if side == "before" else encoding.subspaces
    return torch.cat(maps, 1).float() if part == ALL else maps[int(part)].float()
