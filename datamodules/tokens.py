"""Data module of codes from a token store, with exact resuming."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import DataLoader, Dataset

from artifacts.token_store import TokenStore, TokenStoreError
from datamodules.order import PADDING, Draw, EvaluationOrder, seeded_generator
from datamodules.resumable import ResumableDataModule
from polytoken.errors import UserError
from polytoken.specs import TokenSpec


class TokenRow(NamedTuple):
    """One row of a batch: `codes` (k, N) as they are on disk."""

    codes: np.ndarray
    label: int
    index: int


class TokenDataset(Dataset[TokenRow]):
    """Reads one view of the image of a draw (epoch, index). Each code is checked here, once, against its codebook.

    Args:
        store: The codes.
        sub_codes: The sub-codes to read, in this order.
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
        codes = self.store.codes(row, view)
        self.store.check_codes(codes, row)
        label = self.store.label(row)
        if not 0 <= label < (count := len(self.store.class_to_idx)):  # checked here, so that no training step has to
            raise TokenStoreError(
                f"the token store {self.store.path}, image {self.store.index(row)}: class {label}, and the store has "
                f"classes 0 to {count - 1}: write the store again"
            )
        return TokenRow(codes[self.sub_codes], label, index)


class TokenDataModule(ResumableDataModule):
    """Batches of `codes` int64 (B, k, N), `label` (B,) and `index` (B,) int64, from a token store on disk.

    Codes stay on disk and are read through a memory map. Order and views are functions of `seed` and the number of
    earlier batches, as in `ImageDataModule`; validation reads view 0 of the validation split, in order. Rows with a
    negative `index` pad the last validation batch on several devices and must be dropped. Before the first fit, one
    process compares the whole store with its checksums.

    Codes and labels of a batch lie in their ranges: the data set checks codes, and the store its labels, so that models
    need no checks on the device.

    Args:
        store: Directory with the stores `train` and `validation`, e.g. `runs/digits/tokens/fq_dual`.
        sub_codes: The sub-codes to read, e.g. [0]; None reads all.
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
        self.store = store
        train, validation = (TokenStore.open(Path(store) / split) for split in ("train", "validation"))
        validation.check_tokenizer(train.tokenizer_fingerprint, f"that of {train.path}")
        if train.class_to_idx != validation.class_to_idx:
            raise TokenStoreError(
                f"{train.path} and {validation.path} number their classes differently: write them again"
            )
        known = train.spec.num_sub_codes
        self.sub_codes = list(range(known)) if sub_codes is None else sub_codes
        if not self.sub_codes or len(set(self.sub_codes)) < len(self.sub_codes):
            raise UserError(f"data.sub_codes={sub_codes}: name each sub-code once, or null for all")
        if wrong := [sub_code for sub_code in self.sub_codes if not 0 <= sub_code < known]:
            raise UserError(f"data.sub_codes={sub_codes}: {store} has sub-codes 0 to {known - 1}, and no {wrong[0]}")
        self._stores = {"train": train, "validation": validation}

    @property
    def full_spec(self) -> TokenSpec:
        """Shape of the codes in the store."""
        return self._stores["train"].spec

    @property
    def spec(self) -> TokenSpec:
        """Shape of the codes of a batch."""
        full = self.full_spec
        return TokenSpec(tuple(full.codebook_sizes[sub_code] for sub_code in self.sub_codes), full.scales)

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
        """The run directory of the tokenizer whose codes these are."""
        return self._stores["train"].tokenizer_run

    @property
    def tokenizer_fingerprint(self) -> str:
        """Fingerprint of that tokenizer when it wrote the store."""
        return self._stores["train"].tokenizer_fingerprint

    def prepare_data(self) -> None:
        """Verify the store before the first fit; the other ranks wait."""
        if self.trainer and self.trainer.state.fn == TrainerFn.FITTING:
            for store in self._stores.values():
                store.verify()

    def train_dataloader(self) -> DataLoader[TokenRow]:
        """Return this rank's training batches, from the current position of the run."""
        return self._loader(self.dataset("train"), self._training_order(), self.batch_size, collate)

    def val_dataloader(self) -> DataLoader[TokenRow]:
        """Return this rank's part of the validation split, in order."""
        dataset = self.dataset("validation")
        return self._loader(dataset, EvaluationOrder(len(dataset), *self._ranks()), self.batch_size, collate)

    def test_dataloader(self) -> DataLoader[TokenRow]:
        """Return the same batches as validation."""
        return self.val_dataloader()

    def dataset(self, split: str) -> TokenDataset:
        """Return a split as a map from draws (epoch, index) to rows."""
        return TokenDataset(self._stores[split], self.sub_codes, self.seed, any_view=split == "train")

    def _training_length(self) -> int:
        return len(self._stores["train"])

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the training stream, and the fingerprint of the tokenizer."""
        return {**super().state_dict(), "tokenizer_fingerprint": self.tokenizer_fingerprint}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue training at the position of the checkpoint.

        Raises:
            UserError: The codes are now those of another tokenizer, or see `ResumableDataModule`.
        """
        super().load_state_dict(state_dict)
        if not self.trainer or self.trainer.state.fn == TrainerFn.FITTING:
            before = state_dict["tokenizer_fingerprint"]
            self._stores["train"].check_tokenizer(before, "the one whose codes this run was trained on")


def collate(rows: list[TokenRow]) -> dict[str, torch.Tensor]:
    """Stack rows to `codes` (B, k, N), `label` (B,) and `index` (B,), all int64."""
    return {
        "codes": torch.from_numpy(np.stack([row.codes for row in rows]).astype(np.int64)),
        "label": torch.tensor([row.label for row in rows], dtype=torch.int64),
        "index": torch.tensor([row.index for row in rows], dtype=torch.int64),
    }
