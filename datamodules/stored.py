"""Base class of data modules that a token store describes: its tokens, their tokenizer and their classes."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.trainer.states import TrainerFn

from artifacts.token_store import stores
from datamodules.resumable import ResumableDataModule
from polytoken.specs import LatentSpec, TokenSpec


class StoredTokens(ResumableDataModule):
    """A data module for the tokens of a store, which it reads, or of images that the store's tokenizer encodes.

    `GeneratorModule` builds its generator for these attributes; they do not depend on the kind of batches.
    """

    store: str
    """Directory with the stores `train` and `validation`."""
    sub_codes: list[int]
    """The sub-codes of a batch; empty for latents of a tokenizer without codes."""

    def _read_stores(self, store: str) -> None:
        """Open both stores; raises TokenStoreError if their splits, tokenizers, shapes or classes do not fit."""
        self.store = store
        train, validation = stores(store)
        self._stores = {"train": train, "validation": validation}

    @property
    def full_spec(self) -> TokenSpec | None:
        """Shape of the codes of the tokenizer; None for one without codes."""
        return self._stores["train"].spec

    @property
    def spec(self) -> TokenSpec | None:
        """Shape of the codes of a batch; None for latents of a tokenizer without codes."""
        return self.full_spec and self.full_spec.select(self.sub_codes)

    @property
    def latents(self) -> LatentSpec | None:
        """Shape and scale of the tokenizer's latents over the training images; None if the store has none."""
        return self._stores["train"].latents

    @property
    def class_to_idx(self) -> dict[str, int]:
        """Class numbers by name."""
        return self._stores["train"].class_to_idx

    @property
    def num_classes(self) -> int:
        """Count the classes."""
        return len(self.class_to_idx)

    @property
    def tokenizer_run(self) -> str:
        """The run directory of the tokenizer."""
        return self._stores["train"].tokenizer_run

    @property
    def tokenizer_fingerprint(self) -> str:
        """Fingerprint of that tokenizer when it wrote the store."""
        return self._stores["train"].tokenizer_fingerprint

    def identity(self) -> dict[str, Any]:
        """Return what else the tokens of the store depend on: the views of an image and their size."""
        plan = self._stores["train"].plan
        return {**super().identity(), "store (views)": list(plan.views), "store (image_size)": plan.image_size}

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the training stream, and the fingerprint of the tokenizer."""
        return {**super().state_dict(), "tokenizer_fingerprint": self.tokenizer_fingerprint}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue training at the position of the checkpoint.

        Raises:
            UserError: The tokens are now those of another tokenizer, or see `ResumableDataModule`.
        """
        super().load_state_dict(state_dict)
        if not self.trainer or self.trainer.state.fn == TrainerFn.FITTING:
            before = state_dict["tokenizer_fingerprint"]
            self._stores["train"].check_tokenizer(before, "the one whose tokens this run was trained on")
