"""Data module of codes or latents from a token store, with exact resuming."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import DataLoader, Dataset

from artifacts.token_manifest import TokenStoreError
from artifacts.token_store import TokenStore, check_tokens
from datamodules.order import PADDING, Draw, EvaluationOrder, seeded_generator
from datamodules.stored import StoredTokens
from polytoken.errors import UserError


class TokenRow(NamedTuple):
    """One row of a batch: codes (k, N) or latents (C, h, w) as they are on disk."""

    tokens: np.ndarray
    label: int
    index: int


class TokenDataset(Dataset[TokenRow]):
    """Reads one view of the image of a draw (epoch, index).

    Args:
        store: The codes or latents.
        sub_codes: The sub-codes to read, in this order; not read for latents.
        seed: Determines the view, together with epoch and index.
        any_view: Draw any view, as in training; otherwise view 0.
    """

    def __init__(self, store: TokenStore, sub_codes: list[int], seed: int, any_view: bool) -> None:
        self.store, self.sub_codes, self.seed, self.any_view = store, sub_codes, seed, any_view

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, draw: Draw | int) -> TokenRow:
        # Lightning's `overfit_batches` replaces our sampler and passes a bare index
        epoch, index = draw if isinstance(draw, tuple) else (0, draw)
        row = 0 if index == PADDING else index
        view = 0
        if self.any_view and self.store.num_views > 1:
            view = int(seeded_generator("view", self.seed, epoch, row).integers(self.store.num_views))
        return TokenRow(self.store.tokens(row, view), self.store.label(row), index)

    def collate(self, rows: list[TokenRow]) -> dict[str, torch.Tensor]:
        """Stack rows to `codes` (B, k, N) int64 or `latents` (B, C, h, w) float32, `label` and `index` (B,) int64.

        Codes and labels are checked here, once, so that no training step has to.

        Raises:
            TokenStoreError: A code lies outside of its codebook, a latent is not finite, or there is no such class.
        """
        self._check_labels(rows)
        tokens = np.stack([row.tokens for row in rows])
        try:
            check_tokens(tokens, self.store.spec, f"the token store {self.store.path}")
        except TokenStoreError:
            for row in rows:  # to name the image
                self.store.check(row.tokens, max(row.index, 0))
            raise
        holds = self.store.plan.holds
        if holds == "codes" and self.sub_codes != [*range(tokens.shape[1])]:
            tokens = tokens[:, self.sub_codes]
        return {
            holds: torch.from_numpy(tokens.astype(np.int64 if holds == "codes" else np.float32)),
            "label": torch.tensor([row.label for row in rows], dtype=torch.int64),
            "index": torch.tensor([row.index for row in rows], dtype=torch.int64),
        }

    def _check_labels(self, rows: list[TokenRow]) -> None:
        count = len(self.store.class_to_idx)
        for row in rows:
            if not 0 <= row.label < count:
                raise TokenStoreError(
                    f"the token store {self.store.path}, image {self.store.index(max(row.index, 0))}: class "
                    f"{row.label}, and the store has classes 0 to {count - 1}: write the store again"
                )


class TokenDataModule(StoredTokens):
    """Batches of `codes` int64 (B, k, N), `label` (B,) and `index` (B,) int64, from a token store on disk.

    A store of latents has `latents` float32 (B, C, h, w) in place of `codes`.

    Tokens stay on disk and are read through a memory map. Order and views are functions of `seed` and the number of
    earlier batches, as in `ImageDataModule`; validation reads view 0 of the validation split, in order. Rows with a
    negative `index` pad the last validation batch on several devices and must be dropped. Before the first fit, one
    process compares the whole store with its checksums.

    Codes and labels of a batch lie in their ranges: the data set checks codes, and the store its labels, so that models
    need no checks on the device.

    Args:
        store: Directory with the stores `train` and `validation`, e.g. `runs/digits/tokens/fq_dual`.
        sub_codes: The sub-codes to read, e.g. [0]; None reads all, or latents.
        batch_size: Images a step on each device.
        num_workers: Worker processes of each device; 0 reads in the training process.
        seed: Seed of order and views, not negative.

    Raises:
        MissingFileError: A store or a shard is missing.
        TokenStoreError: A store is damaged, or the two are of different tokenizers.
        UserError: There is no such sub-code.
    """

    def __init__(
        self,
        store: str,
        sub_codes: list[int] | None = None,
        batch_size: int = 32,
        num_workers: int = 4,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        self.prepare_data_per_node = False  # all nodes read one store
        self._read_stores(store)
        spec = self.full_spec
        if spec is None and sub_codes is not None:
            raise UserError(
                f"data.sub_codes={sub_codes}: {store} holds latents of a tokenizer without codes; set it to null for a "
                "generator of latents, or read a store of codes"
            )
        known = spec.num_sub_codes if spec else 0
        self.sub_codes = list(range(known)) if sub_codes is None else sub_codes
        if sub_codes is not None and len(set(sub_codes)) < max(1, len(sub_codes)):
            raise UserError(f"data.sub_codes={sub_codes}: name each sub-code once, or null for all")
        if wrong := [sub_code for sub_code in self.sub_codes if not 0 <= sub_code < known]:
            raise UserError(f"data.sub_codes={sub_codes}: {store} has sub-codes 0 to {known - 1}, and no {wrong[0]}")

    def prepare_data(self) -> None:
        """Verify the store before the first fit; the other ranks wait."""
        if self.trainer and self.trainer.state.fn == TrainerFn.FITTING:
            for store in self._stores.values():
                store.verify()

    def train_dataloader(self) -> DataLoader[TokenRow]:
        """Return this rank's training batches, from the current position of the run."""
        dataset = self.dataset("train")
        return self._loader(dataset, self._training_order(), self.batch_size, dataset.collate)

    def val_dataloader(self) -> DataLoader[TokenRow]:
        """Return this rank's part of the validation split, in order."""
        dataset = self.dataset("validation")
        order = EvaluationOrder(len(dataset), *self._ranks())
        return self._loader(dataset, order, self.batch_size, dataset.collate)

    def test_dataloader(self) -> DataLoader[TokenRow]:
        """Return the same batches as validation."""
        return self.val_dataloader()

    def dataset(self, split: str) -> TokenDataset:
        """Return a split as a map from draws (epoch, index) to rows."""
        return TokenDataset(self._stores[split], self.sub_codes, self.seed, any_view=split == "train")

    def _training_length(self) -> int:
        return len(self._stores["train"])
