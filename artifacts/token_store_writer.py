"""Writer of token stores: a kill loses one shard at most, and an existing store stays until the new one is whole."""

from __future__ import annotations

import logging
import shutil
from dataclasses import fields, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from artifacts.moments import Moments
from artifacts.token_manifest import (
    MANIFEST,
    Manifest,
    Shard,
    StorePlan,
    TokenStoreError,
    merged,
    write_manifest,
)
from artifacts.token_store import TokenStore, check_tokens
from polytoken import records
from polytoken.errors import UserError
from polytoken.files import PARTIAL, file_sha256, replacing
from polytoken.specs import LatentSpec

T = TypeVar("T")

log = logging.getLogger(__name__)

PLAN = "plan.json"


class TokenStoreWriter:
    """Writes the shards of a plan into `<path>.partial`, and renames that to `path` once all are written.

    A shard is a file of a fixed range of images, and counts as written once a note with its digest exists. So shards
    may be written in any order, by several processes, and in several attempts. One process calls `begin` before the
    others write, and `finish` after them.

    Args:
        path: The store's directory, `train` or `validation` below a root.
        plan: The specification of the store.
    """

    def __init__(self, path: str | Path, plan: StorePlan) -> None:
        self.path = Path(path)
        self.plan = plan
        self.partial = self.path.with_name(f"{self.path.name}{PARTIAL}")
        self.replaced = self.path.with_name(f"{self.path.name}.replaced")

    def begin(self) -> None:
        """Continue an interrupted attempt, or delete it if it was of another plan; log why a store is written again.

        Raises:
            TokenStoreError: `path` exists and is not a token store.
        """
        if self.path.exists() and not (self.path / MANIFEST).is_file() and any(self.path.iterdir()):
            raise TokenStoreError(f"{self.path} exists and is not a token store: move it, or name another output")
        if self._is_of_plan(self.partial):
            self._swap()
        elif self.replaced.is_dir() and not self.path.exists():
            self.replaced.replace(self.path)  # the exchange was cut short, and another plan has come since
        if self.whole():
            return
        if (self.path / MANIFEST).is_file() and not self._is_of_plan(self.path):
            reason = _difference(_read(self.path / MANIFEST, StorePlan), self.plan)
            log.warning("%s was written %s: it is written again, and stays until that is done", self.path, reason)
        if self.partial.is_dir() and (begun := _read(self.partial / PLAN, StorePlan)) != self.plan:
            log.warning("%s was begun %s: it is written again", self.partial, _difference(begun, self.plan))
            shutil.rmtree(self.partial)
        self.partial.mkdir(parents=True, exist_ok=True)
        records.write(self.partial / PLAN, self.plan)

    def whole(self) -> bool:
        """True if the store exists, of this plan and with all its shards."""
        if not self._is_of_plan(self.path):
            return False
        try:
            TokenStore.open(self.path)
        except (FileNotFoundError, TokenStoreError) as error:
            log.warning("%s: it is written again", error)
            return False
        return True

    def missing(self) -> list[int]:
        """List the shards that are still to be written."""
        return [] if self.whole() else [shard for shard in range(self.plan.num_shards) if self._note(shard) is None]

    def write(
        self, shard: int, indices: np.ndarray, labels: np.ndarray, tokens: np.ndarray, moments: Moments | None = None
    ) -> None:
        """Write a shard atomically.

        Args:
            shard: Its number.
            indices: (n,), places of the readable images in their split.
            labels: (n,), their classes.
            tokens: Codes (n, V, k, N) or latents (n, V, C, h, w) of their views.
            moments: Of their latents; None leaves the manifest of a store of codes without statistics.

        Raises:
            TokenStoreError: The shapes are not the plan's, or a token or label lies outside of its range.
            RunError: The disk is full or read-only.
        """
        import pyarrow
        from datasets import Features
        from datasets.arrow_writer import ArrowWriter

        images = self.plan.shard_images(shard)
        expected = (len(self.plan.views), *self.plan.shape)
        if tokens.shape[1:] != expected:
            axes = "views, channels, height, width" if self.plan.spec is None else "views, sub-codes, positions"
            raise TokenStoreError(
                f"an image has {self.plan.holds} of shape {tokens.shape[1:]} ({axes}) and the plan of {self.path} says "
                f"{expected}: is data.image_size ({self.plan.image_size}) the tokenizer's?"
            )
        if len(indices) == 0 or indices.min() < images.start or indices.max() >= images.stop:
            raise TokenStoreError(f"shard {shard} of {self.path} is for images {images.start} to {images.stop - 1}")
        check_tokens(tokens, self.plan.spec, f"shard {shard} of {self.path}")
        if labels.min() < 0 or labels.max() >= len(self.plan.class_to_idx):
            raise TokenStoreError(
                f"shard {shard} of {self.path} has labels {labels.min()} to {labels.max()}, and there are "
                f"{len(self.plan.class_to_idx)} classes"
            )
        order = np.argsort(indices)
        flat = np.ascontiguousarray(tokens[order].astype(self.plan.dtype, copy=False)).reshape(-1)
        table = pyarrow.table(
            {
                "index": pyarrow.array(indices[order].astype(np.int64)),
                "label": pyarrow.array(labels[order].astype(np.int64)),
                self.plan.holds: pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(flat), int(np.prod(expected))),
            }
        )
        file = self._file(shard)
        features = Features.from_arrow_schema(table.schema)
        with replacing(file) as unfinished, ArrowWriter(path=str(unfinished), features=features) as writer:
            writer.write_table(table)
            writer.finalize()
        note = Shard(
            file.name, (images.start, images.stop), len(indices), file.stat().st_size, file_sha256(file), moments
        )
        records.write(file.with_suffix(".json"), note)

    def finish(self) -> None:
        """Write the manifest and exchange the old store for the new one.

        Raises:
            TokenStoreError: Shards are missing.
        """
        if self.whole():
            return
        notes = [self._note(shard) for shard in range(self.plan.num_shards)]
        missing = [shard for shard, note in enumerate(notes) if note is None]
        if missing:
            raise TokenStoreError(
                f"{self.partial} lacks {len(missing)} of {len(notes)} shards, the first being {missing[0]}: "
                "run the same predict command again, without trainer.limit_predict_batches"
            )
        shards = tuple(note for note in notes if note is not None)
        manifest = Manifest(sum(shard.rows for shard in shards), shards, self._latents(shards))
        write_manifest(self.partial / MANIFEST, self.plan, manifest)
        self._swap()

    def _is_of_plan(self, store: Path) -> bool:
        """True if a directory has the manifest of this plan; older ones do not name their images, and pass for any."""
        found = _read(store / MANIFEST, StorePlan)
        return found is not None and replace(found, source=found.source or self.plan.source) == self.plan

    def _swap(self) -> None:
        """Exchange the directories; the old store is deleted after the new one has its name."""
        if self.path.exists():
            shutil.rmtree(self.replaced, ignore_errors=True)
            self.path.replace(self.replaced)
        self.partial.replace(self.path)
        shutil.rmtree(self.replaced, ignore_errors=True)
        for note in (PLAN, *(self._file(shard).with_suffix(".json").name for shard in range(self.plan.num_shards))):
            (self.path / note).unlink(missing_ok=True)

    def _latents(self, shards: tuple[Shard, ...]) -> LatentSpec | None:
        """Merge the moments of the shards, in their order."""
        parts = [shard.moments for shard in shards]
        if None in parts and self.plan.spec is None:
            raise TokenStoreError(f"{self.partial} has latents without moments: write the store again")
        try:
            return merged(parts, self.plan.latent_shape[1:])
        except UserError as error:
            if self.plan.spec is None:
                raise
            log.warning("%s serves generators of codes, and none of latents: %s", self.path, error)
            return None

    def _file(self, shard: int) -> Path:
        return self.partial / f"shard_{shard:05d}.arrow"

    def _note(self, shard: int) -> Shard | None:
        """The note of a shard; None unless the shard was written whole."""
        file = self._file(shard)
        note = _read(file.with_suffix(".json"), Shard)
        return note if note is not None and file.is_file() and file.stat().st_size == note.bytes else None


def _read(file: Path, kind: type[T]) -> T | None:
    """A file of an earlier attempt; None if it is missing, broken or of another program."""
    try:
        return records.read(file, kind)
    except UserError:
        return None


def _difference(begun: StorePlan | None, now: StorePlan) -> str:
    """Describe the first field in which two plans differ."""
    if begun is None:
        return "by another program"
    compared = [field.name for field in fields(StorePlan) if field.compare]
    names = [name for name in compared if getattr(begun, name) != getattr(now, name)]
    return f"with another {names[0]}, {str(getattr(begun, names[0]))[:60]}, now {str(getattr(now, names[0]))[:60]}"
