"""Foundation models that the transformers of a folded tokenizer start from (ImageFolder section 3.1)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from polytoken.errors import MissingFileError, UserError
from polytoken.teachers import FOUNDATION_MODELS, Teacher
from polytoken.teachers.foundation_models import TIMM
from polytoken.tokenizers.low_rank import updated_name

if TYPE_CHECKING:
    from polytoken.tokenizers.folded import GridTransformer

RENAMED = {"cls_token": "class_token", "pos_embed": "positions"}
FRESH = "levels.weight"  # no foundation model has grids


@torch.no_grad()
def load_pretrained(source: str, transformers: list[GridTransformer], patch_embedding: nn.Conv2d) -> None:
    """Copy a vision transformer into transformers of its sizes, and its patch embedding into ``patch_embedding``.

    Positions and patch kernel are resampled to the grid and the patch size of the tokenizer, by timm's functions.

    Args:
        source: the name of a published model, or the file of a stand-in.
        transformers: of equal sizes.
        patch_embedding: convolution from pixels to patches.

    Raises:
        MissingFileError: there is no local file of the weights.
        UserError: the sizes differ, or the model is no plain vision transformer with one class token.
    """
    from timm.layers import resample_abs_pos_embed, resample_patch_embed

    published = source in FOUNDATION_MODELS or source.startswith(TIMM)
    if not published and not Path(source).is_file():
        raise MissingFileError(
            f"pretrained is {source!r}, which is no file and no published model: name the file of a stand-in (make "
            f"teacher), one of {', '.join(FOUNDATION_MODELS)}, or {TIMM} and the name of a vision transformer of timm"
        )
    teacher = Teacher(source) if published else Teacher("stand_in", source)
    side = transformers[0].side
    network = teacher.for_grid((side, side)).load_from_file()
    state = {name: value for name, value in network.state_dict().items() if not name.startswith("head.")}
    kernel, bias = (state.pop(f"patch_embed.proj.{name}", None) for name in ("weight", "bias"))
    state = {RENAMED.get(name, name): value for name, value in state.items()}
    for transformer in transformers:
        _check_sizes(source, network, state, transformer)
    state["positions"] = resample_abs_pos_embed(state["positions"], [side, side], num_prefix_tokens=1)
    for transformer in transformers:
        for name, value in transformer.state_dict().items():
            if (plain := updated_name(name)) in state:
                value.copy_(state[plain])
    assert kernel is not None and bias is not None
    patch_embedding.weight.copy_(resample_patch_embed(kernel, [*patch_embedding.kernel_size]))
    patch_embedding.bias.copy_(bias)  # type: ignore[union-attr]


def _check_sizes(source: str, network: nn.Module, state: dict[str, Tensor], transformer: GridTransformer) -> None:
    own_state = transformer.state_dict().items()
    wanted = {plain: value for name, value in own_state if (plain := updated_name(name)) is not None}
    if differing := sorted((state.keys() ^ wanted.keys()) - {FRESH}, key=lambda name: ("blocks" in name, name)):
        raise UserError(
            f"{source} and the tokenizer's transformer do not both have {differing[0]}: start from a plain vision "
            "transformer with one class token and transformer.depth blocks, and set transformer.layer_scale to null "
            "for one without"
        )
    found, own = (
        (state["norm.weight"].shape[0], network.get_submodule("blocks.0.attn").num_heads),
        (wanted["norm.weight"].shape[0], transformer.num_heads),
    )
    if found != own:
        raise UserError(
            f"{source} has {found[0]} channels and {found[1]} heads, and the tokenizer's transformer has {own[0]} and "
            f"{own[1]}: make transformer.dim and transformer.num_heads equal to them"
        )
