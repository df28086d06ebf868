"""Networks that measure images in training, none of which training itself may read."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
import torch

from polytoken.errors import UserError
from polytoken.files import real_path
from polytoken.metrics.extractor import Extractor
from polytoken.metrics.extractors import load_extractor
from polytoken.teachers import WEIGHTS


def load_measuring(name: str, weights: str | None, module: pl.LightningModule, device: torch.device) -> Extractor:
    """Load an extractor that measures the images of a module.

    Raises:
        MissingFileError: if its file is missing.
        UserError: if the objective, discriminator or tokenizer reads this network, or as :func:`load_extractor`.
    """
    objective, tokenizer = (getattr(module, part, None) for part in ("objective", "tokenizer"))
    read = {network for part in (objective, tokenizer) if part is not None for network in part.networks}
    measuring = Path(weights or WEIGHTS / f"{name}.safetensors")
    if real_path(measuring) in map(real_path, read):
        raise UserError(
            f"training reads {weights or name}, which finds the reconstructions better than they are: measure by "
            "another network (trainer.callbacks.init_args.extractor and weights)"
        )
    return load_extractor(name, None if weights is None else Path(weights), device)
