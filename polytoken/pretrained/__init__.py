"""Trained models outside of the suite: exported ones and those that the authors of papers released."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from polytoken.pipeline import GenerationPipeline
from polytoken.pretrained.folder import load_folder, save_pretrained
from polytoken.pretrained.released import FAMILIES, RELEASES, find, load_released
from polytoken.tokenizers import Tokenizer

__all__ = ["from_pretrained", "save_pretrained"]


@torch.random.fork_rng(devices=[])
def from_pretrained(
    name: str | Path,
    trust: Sequence[str] = (),
    file: str | Path | None = None,
    tokenizer_file: str | Path | None = None,
    accept_license: bool = False,
) -> Tokenizer | GenerationPipeline:
    """Load an exported model or a released checkpoint: frozen, in eval mode, on the CPU.

    Args:
        name: folder that ``python -m commands.export`` wrote, or a released checkpoint of docs/model_zoo.md, such as
            ``llamagen/vq_ds16_c2i``. A released generator comes with its tokenizer.
        trust: packages besides polytoken whose classes a folder may name.
        file: file of a released checkpoint; None downloads it. A file of your own training with the released code has
            the same format.
        tokenizer_file: likewise that of a released generator's tokenizer.
        accept_license: True to load released weights whose licence forbids commercial use.

    Raises:
        MissingFileError: if the folder or file does not exist, or cannot be downloaded.
        UserError: if it is damaged, of another kind than the name says, or its licence is not accepted.
    """
    if str(name) in RELEASES:
        return load_released(str(name), file, tokenizer_file, accept_license)
    of_zoo = str(name).split("/")[0] in FAMILIES and not Path(name).exists()
    if of_zoo or file is not None or tokenizer_file is not None:
        find(str(name))  # raises: a misspelt release, or a file of what is none
    return load_folder(name, trust)
