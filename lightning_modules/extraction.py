"""Extraction of the codes or latents of many images by a trained tokenizer, for the token store (as LlamaGen does)."""

from __future__ import annotations

import lightning.pytorch as pl
from torch import Tensor

from datamodules.images import check_image_size
from polytoken.errors import UserError
from polytoken.fingerprint import fingerprint
from polytoken.loading import load_tokenizer
from polytoken.precision import full_precision
from polytoken.specs import TokenSpec


class ExtractionModule(pl.LightningModule):
    """Runs a trained tokenizer over the views of images, in float32; `callbacks.TokenWriter` writes the tokens.

    Args:
        tokenizer_run: the run directory of the tokenizer, e.g. ``runs/digits/tokenizer/fq_dual``, or a checkpoint.

    Raises:
        MissingFileError: if there is no checkpoint.
    """

    def __init__(self, tokenizer_run: str) -> None:
        super().__init__()
        self.tokenizer_run = tokenizer_run
        self.tokenizer = load_tokenizer(tokenizer_run)
        self.fingerprint = fingerprint(self.tokenizer)
        # where few shards are left, some ranks have nothing to do
        self.allow_zero_length_dataloader_with_multiple_devices = True

    @property
    def spec(self) -> TokenSpec | None:
        """Shape of the codes of one view; None for a tokenizer without codes."""
        return self.tokenizer.spec

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Shape (C, h, w) of the latents of one view: the input of the decoder."""
        return self.tokenizer.latent_shape

    def setup(self, stage: str) -> None:
        """Raise UserError for images of another size, or a precision that rounds latents before they are compared."""
        data = getattr(self.trainer, "datamodule", None)
        check_image_size(data, self.tokenizer.image_size, f"the image_size of the tokenizer in {self.tokenizer_run}")
        if str(self.trainer.precision) != "32-true":
            raise UserError(
                f"trainer.precision={self.trainer.precision}, and codes are computed in float32: "
                "set trainer.precision=32-true"
            )

    def predict_step(self, batch: dict[str, Tensor], batch_index: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Images (B, V, 3, H, W) to ``latents`` (B, V, C, h, w), ``codes`` (B, V, k, N), ``label`` and ``index``.

        A tokenizer without codes yields none, and a posterior is represented by its mean.
        """
        images = batch["image"]
        views = images.shape[1]
        with full_precision(images.device):
            encoding = self.tokenizer.encode(images.flatten(0, 1))
        tokens = {"latents": encoding.quantized.unflatten(0, (-1, views))}
        if encoding.codes is not None:
            tokens["codes"] = encoding.codes.unflatten(0, (-1, views))
        return {**tokens, "label": batch["label"], "index": batch["index"]}
