"""Small text transformer over bytes: the text tower of the dual encoder of the embedded data (`make teacher`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, TypedDict

import torch
from msgspec import Meta
from torch import Tensor, nn

from polytoken.blocks import exact_gelu
from polytoken.errors import UserError
from polytoken.records import decode
from polytoken.teachers.stand_in import Size
from polytoken.weights import MAKE_TEACHER, load_state, rebuild, save_state

PADDING = 256  # one more than the largest byte


class TextArchitecture(TypedDict):
    """The arguments of the network."""

    width: Size
    depth: Annotated[int, Meta(ge=1, le=100)]
    num_heads: Size
    context_length: Size


class TextHeader(TypedDict):
    """The header of a file of :meth:`SmallTextTransformer.save`."""

    text_architecture: TextArchitecture
    teacher: str  # identity of the image tower
    classes: dict[str, str]  # names in prompts by class of the data set, in the order of the labels
    prompts: list[str]


class SmallTextTransformer(nn.Module):
    """Bidirectional transformer over the UTF-8 bytes of a text; its output is the mean over them, projected.

    Args:
        width: D of the embeddings, which is that of the image tower.
        depth: number of blocks.
        num_heads: attention heads.
        context_length: most bytes of a text.
    """

    def __init__(self, width: int = 96, depth: int = 2, num_heads: int = 4, context_length: int = 64) -> None:
        super().__init__()
        self.architecture: TextArchitecture = {
            "width": width,
            "depth": depth,
            "num_heads": num_heads,
            "context_length": context_length,
        }
        self.bytes = nn.Embedding(PADDING + 1, width)
        self.positions = nn.Parameter(nn.init.normal_(torch.empty(context_length, width), std=0.02))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, num_heads, 4 * width, dropout=0.0, activation=exact_gelu, batch_first=True, norm_first=True
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.projection = nn.Linear(width, width)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Bytes (n, L) int64 of n texts, padded to the longest.

        Raises:
            UserError: a text is empty or too long.
        """
        rows = [text.encode() for text in texts]
        most = self.architecture["context_length"]
        for text, row in zip(texts, rows, strict=True):
            if not 0 < len(row) <= most:
                raise UserError(
                    f"the text {text[:80]!r} has {len(row)} bytes, and the text tower reads 1 to {most}: change the "
                    "prompt or the name of the class"
                )
        longest = max(map(len, rows))
        return torch.tensor([[*row, *[PADDING] * (longest - len(row))] for row in rows])

    def forward(self, tokens: Tensor) -> Tensor:
        """Bytes (n, L) of :meth:`tokenize` to embeddings (n, D), not normalised."""
        padding = tokens == PADDING
        hidden = self.bytes(tokens) + self.positions[: tokens.shape[1]]
        for block in self.blocks:
            hidden = block(hidden, src_key_padding_mask=padding)
        kept = (~padding).unsqueeze(2).to(hidden.dtype)
        return self.projection((self.norm(hidden) * kept).sum(1) / kept.sum(1))

    def save(self, path: str | Path, teacher: str, classes: Mapping[str, str], prompts: Sequence[str]) -> None:
        """Write safetensors that :meth:`load` reads.

        Args:
            path: the file.
            teacher: identity of the image tower that it was trained with.
            classes: names in prompts by class of the data set, in the order of the labels.
            prompts: the prompts of its training.
        """
        header: TextHeader = {
            "text_architecture": self.architecture,
            "teacher": teacher,
            "classes": dict(classes),
            "prompts": list(prompts),
        }
        save_state(path, self, dict(header))

    @classmethod
    def load(cls, path: str | Path) -> tuple[SmallTextTransformer, TextHeader]:
        """The frozen network in a file of :meth:`save`, and the header.

        Raises:
            MissingFileError: it is missing.
            UserError: the file is not a text tower.
        """
        state, metadata = load_state(path, MAKE_TEACHER)
        if "text_architecture" not in metadata:
            raise UserError(f"{path} is not a text tower (its header names no text_architecture): {MAKE_TEACHER}")
        header = decode(metadata, TextHeader, f"the header of {path}")
        return rebuild(lambda: cls(**header["text_architecture"]), state, path, MAKE_TEACHER), header
