"""Token store: the codes of a split in memory-mapped Arrow shards, described by a manifest."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from polytoken import records
from polytoken.errors import MissingFileError, RunError, UserError
from polytoken.files import PARTIAL, file_sha256
from polytoken.specs import TokenSpec

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
VERIFIED = "verified.json"
FORMAT = 1


class TokenStoreError(UserError):
    """A token store that is missing, damaged, or of another tokenizer."""


@dataclass(frozen=True)
class StorePlan:
    """Specification of a store; two stores of equal plans hold equal codes.

    Args:
        spec: Shape of the codes of one view.
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

    spec: TokenSpec
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
        if self.format != FORMAT:
            raise UserError(f"a token store of format {self.format}, and this code reads {FORMAT}")
        if not self.views or min(self.num_images, self.image_size, self.images_per_shard) < 1:
            raise UserError("views, num_images, image_size and images_per_shard must be at least 1")
        if sorted(self.class_to_idx.values()) != list(range(len(self.class_to_idx))):
            raise UserError(f"class_to_idx does not number the classes from 0 to {len(self.class_to_idx) - 1}")

    @property
    def dtype(self) -> np.dtype:
        """Type of the codes on disk: uint16, or uint32 where a codebook has more than 65,536."""
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
    """A file of a store: its name, number of images, size in bytes and digest."""

    file: str
    rows: int
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        if Path(self.file).name != self.file:
            raise UserError(f"{self.file!r} is not the name of a file in the store")


@dataclass(frozen=True)
class Manifest:
    """`manifest.json`, which lists the shards next to the fields of the plan."""

    images: int
    shards: tuple[Shard, ...]

    def __post_init__(self) -> None:
        if len({shard.file for shard in self.shards}) < len(self.shards):
            raise UserError("a shard is listed twice")
        if not 0 < sum(shard.rows for shard in self.shards) == self.images:
            raise UserError(f"the shards do not add up to {self.images} images")


class TokenStore:
    """The codes of a split, read in place through a memory map.

    Rows are the readable images, in the order of their split; `index(row)` is a row's place in the split.
    """

    def __init__(self, path: Path, plan: StorePlan, shards: tuple[Shard, ...]) -> None:
        self.path = path
        self.plan = plan
        self.shards = shards
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
            plan, shards = records.read(manifest, StorePlan), records.read(manifest, Manifest).shards
        except UserError as error:
            raise TokenStoreError(f"{error}. Write the token store again (make tokens).") from error
        for shard in shards:
            _check_shard(path, shard, verify)
        return cls(path, plan, shards)

    def verify(self) -> None:
        """Compare the shards with their SHA-256, unless none has changed since the last time.

        Nothing else detects a code that flipped within its codebook. `verified.json` records the verified state.

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
    def spec(self) -> TokenSpec:
        """Shape of the codes of one view."""
        return self.plan.spec

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
        """Fingerprint of the tokenizer whose codes these are."""
        return self.plan.tokenizer_fingerprint

    @property
    def tokenizer_run(self) -> str:
        """The run directory of that tokenizer."""
        return self.plan.tokenizer_run

    def __len__(self) -> int:
        return len(self._labels)

    def codes(self, row: int, view: int) -> np.ndarray:
        """Return the codes (k, N) of one view, in the type on disk; read-only, in place."""
        chunk = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self._chunks[chunk][row - self._starts[chunk], view]

    def label(self, row: int) -> int:
        """Return the class of an image."""
        return int(self._labels[row])

    def index(self, row: int) -> int:
        """Return the image's place in its split."""
        return int(self._indices[row])

    def check_tokenizer(self, fingerprint: str, name: str) -> None:
        """Raise TokenStoreError, naming both sides, if the codes are not those of this tokenizer."""
        if fingerprint != self.tokenizer_fingerprint:
            raise TokenStoreError(
                f"the token store {self.path} holds codes of the tokenizer {self.tokenizer_run} as it was "
                f"({self.tokenizer_fingerprint[:12]}…), and {name} is another one ({fingerprint[:12]}…): write the "
                "store again, or name the tokenizer that wrote it"
            )

    def check_codes(self, codes: np.ndarray, row: int) -> None:
        """Raise TokenStoreError, naming both sides, if codes (k, N) lie beyond their codebooks."""
        check_codes(codes, self.spec, f"the token store {self.path}, image {self.index(row)}")

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenStore, (self.path, self.plan, self.shards)  # workers map the files themselves

    def _map(self) -> None:
        from datasets import Dataset
        from pyarrow import ArrowInvalid

        shape = (-1, self.num_views, self.spec.num_sub_codes, self.spec.num_positions)
        self._chunks: list[np.ndarray] = []
        labels: list[np.ndarray] = []
        indices: list[np.ndarray] = []
        for shard in self.shards:
            try:
                table = Dataset.from_file(str(self.path / shard.file), in_memory=False).data
                flat = [chunk.flatten().to_numpy(zero_copy_only=True) for chunk in table.column("codes").chunks]
                chunks = [codes.reshape(shape) for codes in flat]
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
                    f"{self.path / shard.file} holds {len(labels[-1])} labels and the codes of {rows} images as "
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


def check_codes(codes: np.ndarray, spec: TokenSpec, where: str) -> None:
    """Raise TokenStoreError if codes (…, k, N) lie outside of their codebooks."""
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
