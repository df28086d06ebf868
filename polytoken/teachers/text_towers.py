"""Text towers whose embeddings are compared with a teacher's pooled patches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from polytoken.errors import MissingFileError, UserError, first_line
from polytoken.precision import full_precision
from polytoken.teachers.text import SmallTextTransformer

PUBLISHED = {  # by teacher: the open_clip model that its image tower is part of
    "siglip2_large_256": "ViT-L-16-SigLIP2-256/webli",
    "siglip2_large": "ViT-L-16-SigLIP2-384/webli",
}


@dataclass(frozen=True)
class TextTower:
    """A frozen text tower.

    Args:
        name: of the model.
        teacher: the image tower: name of a published teacher, or identity of a stand-in.
        embed: texts to embeddings (n, D) float32 on the CPU, not normalised.
        classes: names in prompts by class of the data set that it is meant for, in the order of the labels.
        prompts: that data set's prompts, with a placeholder {}.
    """

    name: str
    teacher: str
    embed: Callable[[Sequence[str]], Tensor]
    classes: Mapping[str, str]
    prompts: tuple[str, ...]


def open_text_tower(source: str, device: torch.device | None = None) -> TextTower:
    """The text tower of a published teacher, by its name, or of a stand-in, by its file.

    Args:
        source: e.g. ``siglip2_large`` or ``runs/digits/teacher/text.safetensors``.
        device: where it computes; None is the CPU.

    Raises:
        MissingFileError: the file is missing, or the hub of a published one does not answer.
        UserError: the file is not a text tower, or ``transformers`` is not installed.
    """
    device = device or torch.device("cpu")
    return _published(source, device) if source in PUBLISHED else _stand_in(source, device)


def _stand_in(path: str, device: torch.device) -> TextTower:
    if not Path(path).is_file():
        raise MissingFileError(
            f"there is no text tower {path}: name the text.safetensors of `make teacher`, or one of "
            f"{', '.join(PUBLISHED)}"
        )
    network, header = SmallTextTransformer.load(path)
    network.to(device)
    embed = _embedder(network, network.tokenize, device)
    return TextTower(path, header["teacher"], embed, header["classes"], tuple(header["prompts"]))


def _published(name: str, device: torch.device) -> TextTower:
    """SigLIP 2 (arXiv 2502.14786) by open_clip, with its class names and prompts of ImageNet."""
    if find_spec("transformers") is None:
        raise UserError(
            f"the tokenizer of {PUBLISHED[name]} needs transformers: pip install transformers (the extra `caption`)"
        )
    import open_clip
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES
    from timm.data import ImageNetInfo

    model, tag = PUBLISHED[name].split("/")
    try:
        tokenize = open_clip.get_tokenizer(model)  # first: without a network it fails before gigabytes are allocated
        network = open_clip.create_model(model, pretrained=tag, device=device).eval().requires_grad_(False)
    except torch.OutOfMemoryError:
        raise  # a RuntimeError too
    except (OSError, RuntimeError) as error:
        raise MissingFileError(
            f"the hub of {PUBLISHED[name]} does not answer ({first_line(error)}): run this where there is a "
            "network, and bring the file of class vectors along"
        ) from error
    classes = dict(zip(ImageNetInfo("imagenet-1k").label_names(), IMAGENET_CLASSNAMES, strict=True))
    prompts = tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)
    return TextTower(PUBLISHED[name], name, _embedder(network.encode_text, tokenize, device), classes, prompts)


def _embedder(
    encode: Callable[[Tensor], Tensor], tokenize: Callable[[Sequence[str]], Tensor], device: torch.device
) -> Callable[[Sequence[str]], Tensor]:
    @torch.no_grad()
    def embed(texts: Sequence[str]) -> Tensor:
        with full_precision(device):
            return encode(tokenize(texts).to(device)).float().cpu()

    return embed
