"""Token store: the codes or latents of a split in memory-mapped Arrow shards, described by a manifest."""

from __future__ import annotations

import logging
from bisect import bisect_right
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from artifacts.token_manifest import MANIFEST, Manifest, Shard, StorePlan, TokenStoreError, read_manifest
from polytoken import records
from polytoken.errors import MissingFileError, RunError
from polytoken.files import PARTIAL, file_sha256
from polytoken.specs import LatentSpec, TokenSpec

log = logging.getLogger(__name__)

SPLITS = ("train", "validation")
SAME = ("spec", "latent_shape", "tokenizer_fingerprint", "class_to_idx", "image_size")  # in the plans of both splits
VERIFIED = "verified.json"
LARGEST_LATENT = float(np.finfo(np.float16).max)


class TokenStore:
    """The codes or latents of a split, read in place through a memory map.

    Rows are the readable images, in the order of their split; `index(row)` is a row's place in the split.
    """

    def __init__(self, path: Path, plan: StorePlan, manifest: Manifest) -> None:
        self.path = path
        self.plan = plan
        self.manifest = manifest
        self._check_plan()
        self._map()

    @classmethod
    def open(cls, path: str | Path, verify: bool = False) -> TokenStore:
        """Open a store; `verify` reads every byte to compare the shards with their SHA-256.

        Raises:
            MissingFileError: There is no whole store at `path`, or a shard is missing.
            TokenStoreError: The manifest or a shard is not what was written.
        """
        path = Path(path)
        manifest = path / MANIFEST
        if not manifest.is_file():
            begun = path.with_name(f"{path.name}{PARTIAL}").is_dir()
            reason = (
                "was never finished: run the same predict command again" if begun else "is not there: `make tokens`"
            )
            raise MissingFileError(f"the token store {path} {reason}")
        plan, content = read_manifest(manifest)
        if plan.split != path.name:
            raise TokenStoreError(f"{path} holds the split {plan.split}: write both stores again")
        for shard in content.shards:
            _check_shard(path, shard, verify)
        return cls(path, plan, content)

    def verify(self) -> None:
        """Compare the shards with their SHA-256, unless none has changed since the last time.

        Nothing else detects a flipped bit in a latent, or in a code that stays within its codebook. `verified.json`
        records the verified state.

        Raises:
            TokenStoreError: A shard is not what was written.
        """
        # The time of change, unlike that of modification, cannot be carried along when a file is copied.
        state = {shard.file: (shard.sha256, (self.path / shard.file).stat().st_ctime_ns) for shard in self.shards}
        note = self.path / VERIFIED
        if records.read_derived(note, dict[str, tuple[str, int]]) == state:
            return
        gigabytes = sum(shard.bytes for shard in self.shards) / 1e9
        log.info("reading all %.1f GB of %s once, to compare them with their SHA-256", gigabytes, self.path)
        for shard in self.shards:
            _check_shard(self.path, shard, verify=True)
        with suppress(RunError):  # the next run reads a read-only store again
            records.write(note, state)

    @property
    def shards(self) -> tuple[Shard, ...]:
        """The files, in the order of their images."""
        return self.manifest.shards

    @property
    def spec(self) -> TokenSpec | None:
        """Shape of the codes of one view; None for a store of latents."""
        return self.plan.spec

    @property
    def latents(self) -> LatentSpec | None:
        """Shape and scale of the latents, stored or of the stored codes; None if a store of codes has no statistics."""
        return self.manifest.latents

    @property
    def num_views(self) -> int:
        """Count the views of an image."""
        return len(self.plan.views)

    @property
    def class_to_idx(self) -> dict[str, int]:
        """The numbering of the classes."""
        return self.plan.class_to_idx

    @property
    def tokenizer_fingerprint(self) -> str:
        """Fingerprint of the tokenizer whose tokens these are."""
        return self.plan.tokenizer_fingerprint

    @property
    def tokenizer_run(self) -> str:
        """The run directory of that tokenizer."""
        return self.plan.tokenizer_run

    def __len__(self) -> int:
        return len(self._labels)

    def tokens(self, row: int, view: int) -> np.ndarray:
        """Return the codes (k, N) or latents (C, h, w) of one view, in the type on disk; read-only, in place."""
        chunk = bisect_right(self._starts, row) - 1
        return self._chunks[chunk][row - self._starts[chunk], view]

    def label(self, row: int) -> int:
        """Return the class of an image."""
        return int(self._labels[row])

    def index(self, row: int) -> int:
        """Return the image's place in its split."""
        return int(self._indices[row])

    def check_tokenizer(self, fingerprint: str, name: str) -> None:
        """Raise TokenStoreError, naming both sides, if the tokens are not those of this tokenizer."""
        if fingerprint != self.tokenizer_fingerprint:
            raise TokenStoreError(
                f"the token store {self.path} holds {self.plan.holds} of the tokenizer {self.tokenizer_run} as it was "
                f"({self.tokenizer_fingerprint[:12]}…), and {name} is another one ({fingerprint[:12]}…): write the "
                "store again, or name the tokenizer that wrote it"
            )

    def check(self, tokens: np.ndarray, row: int) -> None:
        """Raise TokenStoreError, naming both sides, if codes lie beyond their codebooks or latents are not finite."""
        check_tokens(tokens, self.spec, f"the token store {self.path}, image {self.index(row)}")

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenStore, (self.path, self.plan, self.manifest)  # workers map the files themselves

    def _check_plan(self) -> None:
        covered = [shard.images for shard in self.shards]
        if covered != [(images.start, images.stop) for images in map(self.plan.shard_images, range(len(covered)))] or (
            covered[-1][1] != self.plan.num_images
        ):
            raise TokenStoreError(
                f"{self.path / MANIFEST} lists shards of the images 0 to {covered[-1][1] - 1}, and the plan is for "
                f"{self.plan.num_images} images, {self.plan.images_per_shard} a shard: write the store again"
            )
        latents, shape = self.manifest.latents, self.plan.latent_shape
        if latents is None and self.plan.spec is None:
            raise TokenStoreError(f"{self.path / MANIFEST} has no mean and deviation of its latents: write it again")
        if latents is not None and (latents.channels, *latents.grid) != shape:
            raise TokenStoreError(
                f"{self.path / MANIFEST} describes latents of {latents.channels} channels on a grid of {latents.grid}, "
                f"and its latent_shape is {shape}: write the store again"
            )

    def _map(self) -> None:
        from datasets import Dataset
        from pyarrow import ArrowException

        shape = (-1, self.num_views, *self.plan.shape)
        self._chunks: list[np.ndarray] = []
        labels: list[np.ndarray] = []
        indices: list[np.ndarray] = []
        for shard in self.shards:
            try:
                table = Dataset.from_file(str(self.path / shard.file), in_memory=False).data
                flat = [chunk.flatten().to_numpy(zero_copy_only=True) for chunk in table.column(self.plan.holds).chunks]
                chunks = [values.reshape(shape) for values in flat]
                labels.append(table.column("label").to_numpy())
                indices.append(table.column("index").to_numpy())
            except (ArrowException, KeyError, OSError, ValueError) as error:
                raise TokenStoreError(
                    f"{self.path / shard.file} is damaged, though of the size that {MANIFEST} says ({error}): write "
                    "the store again"
                ) from error
            rows = sum(map(len, chunks))
            if chunks[-1].dtype != self.plan.dtype or not rows == len(labels[-1]) == shard.rows:
                raise TokenStoreError(
                    f"{self.path / shard.file} holds {len(labels[-1])} labels and the tokens of {rows} images as "
                    f"{chunks[-1].dtype}, and {MANIFEST} says {shard.rows} as {self.plan.dtype}: write the store again"
                )
            first, stop = shard.images
            for name, values, low, high in (
                ("label", labels[-1], 0, len(self.class_to_idx)),
                ("index", indices[-1], first, stop),
            ):
                if values.min() < low or values.max() >= high:
                    wrong = values[(values < low) | (values >= high)][0]
                    raise TokenStoreError(
                        f"{self.path / shard.file} has the {name} {wrong}, beyond {low} to {high - 1}: write the store "
                        "again"
                    )
            if not (np.diff(indices[-1]) > 0).all():
                raise TokenStoreError(
                    f"{self.path / shard.file} holds an image twice, or in another order than its split: write the "
                    "store again"
                )
            self._chunks += chunks
        self._labels, self._indices = np.concatenate(labels), np.concatenate(indices)
        self._starts = [0, *accumulate(len(chunk) for chunk in self._chunks[:-1])]


def check_tokens(tokens: np.ndarray, spec: TokenSpec | None, where: str) -> None:
    """Raise TokenStoreError if codes (…, k, N) lie outside of their codebooks, or if float16 cannot hold latents."""
    if spec is None:
        if not np.abs(tokens).max() <= LARGEST_LATENT:  # NaN fails as well
            wrong = tokens[~(np.abs(tokens) <= LARGEST_LATENT)][0]
            raise TokenStoreError(
                f"{where}: a latent is {wrong}, and float16 holds finite numbers up to {LARGEST_LATENT:,.0f}: train "
                "the tokenizer with smaller latents, by a KL term or a lower learning rate"
            )
        return
    codes = tokens
    lowest, highest = (reduce(axis=(*range(codes.ndim - 2), -1)) for reduce in (codes.min, codes.max))
    for sub_code, (low, high, size) in enumerate(zip(lowest, highest, spec.codebook_sizes, strict=True)):
        if low < 0 or high >= size:
            code = low if low < 0 else high
            raise TokenStoreError(f"{where}: code {code} in codebook {sub_code}, which has codes 0 to {size - 1}")


def _check_shard(path: Path, shard: Shard, verify: bool) -> None:
    file = path / shard.file
    if not file.is_file():
        raise MissingFileError(f"{path / MANIFEST} lists {shard.file}, and {file} is missing: write the store again")
    if file.stat().st_size != shard.bytes:
        raise TokenStoreError(
            f"{file} has {file.stat().st_size} bytes, and {MANIFEST} says {shard.bytes}: write the store again"
        )
    if verify and (found := file_sha256(file)) != shard.sha256:
        raise TokenStoreError(
            f"{file} has the SHA-256 {found[:12]}…, and {MANIFEST} says {shard.sha256[:12]}…: it was damaged since it "
            f"was written; delete {path} and write the store again (make tokens)"
        )


def stores(root: str | Path, verify: bool = False) -> tuple[TokenStore, TokenStore]:
    """Open the stores `train` and `validation` below a root.

    Raises:
        MissingFileError: One of them is missing.
        TokenStoreError: One is damaged, or they hold tokens of other shapes, tokenizers, classes or image sizes.
    """
    train, validation = (TokenStore.open(Path(root) / split, verify) for split in SPLITS)
    for name in SAME:
        one, other = getattr(train.plan, name), getattr(validation.plan, name)
        if one != other:
            raise TokenStoreError(
                f"{train.path} and {validation.path} differ in {name}, {str(one)[:80]} and {str(other)[:80]}: write "
                "both stores again"
            )
    return train, validation
