"""Manifest of a token store: what it holds, its files and their digests, and a digest over itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any, Literal

import numpy as np

from artifacts.moments import Moments
from polytoken import records
from polytoken.errors import UserError
from polytoken.specs import LatentSpec, TokenSpec

MANIFEST = "manifest.json"
FORMAT = 3
SHA256 = "sha256"  # field with the digest of all others


class TokenStoreError(UserError):
    """A token store that is missing, damaged, or of another tokenizer."""


def stored_shape(spec: TokenSpec | None, latent_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of what a store holds of one view: codes (k, N), or latents (C, h, w) of a tokenizer without codes."""
    return latent_shape if spec is None else (spec.num_sub_codes, spec.num_positions)


def stored_type(spec: TokenSpec | None) -> np.dtype:
    """Type on disk: float16 of latents, uint16 of codes, or uint32 where a codebook has more than 65,536."""
    if spec is None:
        return np.dtype(np.float16)
    return np.dtype(np.uint16 if max(spec.codebook_sizes) <= 65536 else np.uint32)


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
        source: Digest of the images' identity, as their source states it (`ImageRecords.digest`); None in older stores.
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
    source: str | None = None
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
        return stored_shape(self.spec, self.latent_shape)

    @property
    def dtype(self) -> np.dtype:
        """Type on disk."""
        return stored_type(self.spec)

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
    """A file of a store: its size in bytes and digest, and the moments of its latents.

    `images` is [first, stop) of the images that it is for, of which `rows` are readable.
    """

    file: str
    images: tuple[int, int]
    rows: int
    bytes: int
    sha256: str
    moments: Moments | None = None

    def __post_init__(self) -> None:
        if Path(self.file).name != self.file:
            raise UserError(f"{self.file!r} is not the name of a file in the store")
        first, stop = self.images
        if not 0 < self.rows <= stop - first:
            raise UserError(f"{self.file} has {self.rows} rows for the images {first} to {stop - 1}")


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
        stops = [0, *(shard.images[1] for shard in self.shards)]
        if [shard.images[0] for shard in self.shards] != stops[:-1]:
            raise UserError("the images of the shards do not follow one another from 0 on")
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


def read_manifest(path: Path) -> tuple[StorePlan, Manifest]:
    """Read and validate a manifest.

    Raises:
        TokenStoreError: It is of another format, broken, or not as it was written.
    """
    try:
        version = records.read(path, Version).format
        if version != FORMAT:
            raise TokenStoreError(
                f"{path.parent} is a token store of format {version}, and this code reads {FORMAT}: delete "
                f"{path.parent.parent} and write it again (make tokens)"
            )
        plan, manifest = records.read(path, StorePlan), records.read(path, Manifest)
        content = records.read(path, dict[str, Any])
    except TokenStoreError:
        raise
    except UserError as error:
        raise TokenStoreError(f"{error}. Write the token store again (make tokens).") from error
    if (found := manifest_sha256(content)) != content.get(SHA256):
        raise TokenStoreError(
            f"{path} has the SHA-256 {found[:12]}…, and says {str(content.get(SHA256))[:12]}…: it was changed since it "
            f"was written; delete {path.parent} and write the store again (make tokens)"
        )
    return plan, manifest


def write_manifest(path: Path, plan: StorePlan, manifest: Manifest) -> None:
    """Write a manifest with its digest."""
    content = json.loads(records.encode({**plan.to_json(), **asdict(manifest)}))  # plain lists and numbers, as read
    records.write(path, {SHA256: manifest_sha256(content), **content})


def manifest_sha256(content: dict[str, Any]) -> str:
    """SHA-256 in hex of all other fields, whatever their order and spacing."""
    fields = {name: value for name, value in content.items() if name != SHA256}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
