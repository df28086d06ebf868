"""Token store: the codes or latents of a split in memory-mapped Arrow shards, described by a manifest."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any, Literal

import numpy as np

from artifacts.moments import Moments
from polytoken import records
from polytoken.errors import MissingFileError, RunError, UserError
from polytoken.files import PARTIAL, file_sha256
from polytoken.specs import LatentSpec, TokenSpec

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
VERIFIED = "verified.json"
FORMAT = 2
LARGEST_LATENT = float(np.finfo(np.float16).max)


class TokenStoreError(UserError):
    """A token store that is missing, damaged, or of another tokenizer."""


@dataclass(frozen=True)
class StorePlan:
    """Specification of a store; two stores of equal plans hold equal tokens.

    Args:
        spec: Shape of the codes of one view; None for a tokenizer without codes, whose store holds its latents.
        latent_shape: Shape (C, h, w) of the latents of one view, the input of the tokenizer's decoder.
        tokenizer_fingerprint: Fingerprint of the tokenizer (`polytoken.fingerprint`).
        tokenizer_run: The directory it was loaded from; not compared, since the fingerprint decides.
        split: `train` or `validation`.
        num_images: Images in the split.
        class_to_idx: The numbering of its classes.
        image_size: Pixels a side of a view.
        views: The views in words; view 0 is a centre crop.
        images_per_shard: Images in a shard; shard s begins with image s · images_per_shard.
        format: Version of the format on disk.
    """

    spec: TokenSpec | None
    latent_shape: tuple[int, int, int]
    tokenizer_fingerprint: str
    tokenizer_run: str = field(compare=False)
    split: str
    num_images: int
    class_to_idx: dict[str, int]
    image_size: int
    views: tuple[str, ...]
    images_per_shard: int
    format: int = field(default=FORMAT, compare=False)

    def __post_init__(self) -> None:
        if not self.views or min(self.num_images, self.image_size, self.images_per_shard, *self.latent_shape) < 1:
            raise UserError("views, num_images, image_size, images_per_shard and latent_shape must be at least 1")
        if sorted(self.class_to_idx.values()) != list(range(len(self.class_to_idx))):
            raise UserError(f"class_to_idx does not number the classes from 0 to {len(self.class_to_idx) - 1}")

    @property
    def holds(self) -> Literal["codes", "latents"]:
        """Kind of the stored tokens; also the name of the column and of the entry in a batch."""
        return "latents" if self.spec is None else "codes"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of what the store holds of one view: codes (k, N) or latents (C, h, w)."""
        return self.latent_shape if self.spec is None else (self.spec.num_sub_codes, self.spec.num_positions)

    @property
    def dtype(self) -> np.dtype:
        """Type on disk: float16 of latents, uint16 of codes, or uint32 where a codebook has more than 65,536."""
        if self.spec is None:
            return np.dtype(np.float16)
        return np.dtype(np.uint16 if max(self.spec.codebook_sizes) <= 65536 else np.uint32)

    @property
    def num_shards(self) -> int:
        """Count the shards; the last may be shorter."""
        return -(-self.num_images // self.images_per_shard)

    def shard_images(self, shard: int) -> range:
        """Return the images of a shard."""
        first = shard * self.images_per_shard
        return range(first, min(first + self.images_per_shard, self.num_images))

    def to_json(self) -> dict[str, Any]:
        """Plain data, for the manifest."""
        return asdict(self)


@dataclass(frozen=True)
class Shard:
    """A file of a store: its name, number of images, size in bytes and digest, and the moments of its latents."""

    file: str
    rows: int
    bytes: int
    sha256: str
    moments: Moments | None = None

    def __post_init__(self) -> None:
        if Path(self.file).name != self.file:
            raise UserError(f"{self.file!r} is not the name of a file in the store")


@dataclass(frozen=True)
class Manifest:
    """`manifest.json`, which lists the shards next to the fields of the plan.

    `latents` has mean and deviation of the latents over all views; None if a store of codes was written without.
    """

    images: int
    shards: tuple[Shard, ...]
    latents: LatentSpec | None

    def __post_init__(self) -> None:
        if len({shard.file for shard in self.shards}) < len(self.shards):
            raise UserError("a shard is listed twice")
        if not 0 < sum(shard.rows for shard in self.shards) == self.images:
            raise UserError(f"the shards do not add up to {self.images} images")
        parts = [shard.moments for shard in self.shards]
        if self.latents is not None and self.latents != merged(parts, self.latents.grid):
            raise UserError("latents are not the mean and deviation of the shards' moments")


@dataclass(frozen=True)
class Version:
    """The format of a manifest, which is read before the rest of it."""

    format: int


def merged(parts: Sequence[Moments | None], grid: tuple[int, int]) -> LatentSpec | None:
    """Describe the latents of shards by their moments, in this order; None if a shard has none."""
    found = [part for part in parts if part is not None]
    return reduce(add, found).spec(grid) if found and len(found) == len(parts) else None


class TokenStore:
    """The codes or latents of a split, read in place through a memory map.

    Rows are the readable images, in the order of their split; `index(row)` is a row's place in the split.
    """

    def __init__(self, path: Path, plan: StorePlan, manifest: Manifest) -> None:
        self.path = path
        self.plan = plan
        self.manifest = manifest
        self._check_latents()
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
        try:
            version = records.read(manifest, Version).format
            if version != FORMAT:
                raise TokenStoreError(
                    f"{path} is a token store of format {version}, and this code reads {FORMAT}: delete {path.parent} "
                    "and write it again (make tokens)"
                )
            plan, content = records.read(manifest, StorePlan), records.read(manifest, Manifest)
        except TokenStoreError:
            raise
        except UserError as error:
            raise TokenStoreError(f"{error}. Write the token store again (make tokens).") from error
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
        chunk = int(np.searchsorted(self._starts, row, side="right")) - 1
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

    def _check_latents(self) -> None:
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
        from pyarrow import ArrowInvalid

        shape = (-1, self.num_views, *self.plan.shape)
        self._chunks: list[np.ndarray] = []
        labels: list[np.ndarray] = []
        indices: list[np.ndarray] = []
        for shard in self.shards:
            try:
                table = Dataset.from_file(str(self.path / shard.file), in_memory=False).data
                flat = [chunk.flatten().to_numpy(zero_copy_only=True) for chunk in table.column(self.plan.holds).chunks]
                chunks = [values.reshape(shape) for values in flat]
            except (ArrowInvalid, KeyError, ValueError) as error:
                raise TokenStoreError(
                    f"{self.path / shard.file} is damaged, though of the size that {MANIFEST} says ({error}): write "
                    "the store again"
                ) from error
            labels.append(table.column("label").to_numpy())
            indices.append(table.column("index").to_numpy())
            rows = sum(map(len, chunks))
            if chunks[-1].dtype != self.plan.dtype or not rows == len(labels[-1]) == shard.rows:
                raise TokenStoreError(
                    f"{self.path / shard.file} holds {len(labels[-1])} labels and the tokens of {rows} images as "
                    f"{chunks[-1].dtype}, and {MANIFEST} says {shard.rows} as {self.plan.dtype}: write the store again"
                )
            self._chunks += chunks
        self._labels, self._indices = np.concatenate(labels), np.concatenate(indices)
        for name, values, count in (
            ("label", self._labels, len(self.class_to_idx)),
            ("index", self._indices, self.plan.num_images),
        ):
            if values.min() < 0 or values.max() >= count:
                wrong = values[(values < 0) | (values >= count)][0]
                raise TokenStoreError(f"{self.path} has the {name} {wrong}, beyond 0 to {count - 1}: write it again")
        self._starts = np.cumsum([0, *(len(chunk) for chunk in self._chunks[:-1])])


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


def stores(root: str | Path, verify: bool = False) -> Iterator[TokenStore]:
    """Open the stores below a root, `train` first; raises as `TokenStore.open` does."""
    for split in ("train", "validation"):
        yield TokenStore.open(Path(root) / split, verify)
