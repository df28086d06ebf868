"""Extraction of the codes of many images by a trained tokenizer, for the token store (as LlamaGen does)."""

from __future__ import annotations

import lightning.pytorch as pl
from torch import Tensor

from polytoken.errors import UserError
from polytoken.fingerprint import fingerprint
from polytoken.loading import load_tokenizer
from polytoken.precision import full_precision
from polytoken.specs import TokenSpec


class ExtractionModule(pl.LightningModule):
    """Runs a trained tokenizer over the views of images, in float32; `callbacks.TokenWriter` writes the codes.

    Args:
        tokenizer_run: the run directory of the tokenizer, e.g. ``runs/digits/tokenizer/fq_dual``, or a checkpoint.

    Raises:
        MissingFileError: if there is no checkpoint.
        UserError: if the tokenizer has no codes.
    """

    def __init__(self, tokenizer_run: str) -> None:
        super().__init__()
        self.tokenizer_run = tokenizer_run
        self.tokenizer = load_tokenizer(tokenizer_run)
        self.tokenizer.require_codes()
        self.fingerprint = fingerprint(self.tokenizer)
        # where few shards are left, some ranks have nothing to do
        self.allow_zero_length_dataloader_with_multiple_devices = True

    @property
    def spec(self) -> TokenSpec:
        """Shape of the codes of one view."""
        spec = self.tokenizer.spec
        assert spec is not None  # or it has no codes
        return spec

    def setup(self, stage: str) -> None:
        """Raise an error for a precision that rounds the latents before they are compared with the codes."""
        if str(self.trainer.precision) != "32-true":
            raise UserError(
                f"trainer.precision={self.trainer.precision}, and codes are computed in float32: "
                "set trainer.precision=32-true"
            )

    def predict_step(self, batch: dict[str, Tensor], batch_index: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Images (B, V, 3, H, W) to ``codes`` (B, V, k, N) with their ``label`` and ``index``."""
        images = batch["image"]
        views = images.shape[1]
        with full_precision(images.device):
            codes = self.tokenizer.encode(images.flatten(0, 1)).codes
        assert codes is not None
        return {"codes": codes.unflatten(0, (-1, views)), "label": batch["label"], "index": batch["index"]}
