"""Images in tar shards, in the layout of the library webdataset, read in any order."""

from __future__ import annotations

import os
import re
import resource
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_info
from PIL import Image

from datamodules.sources.base import LARGEST_LABEL, SPLITS, UNLABELLED, ImageRecords, ImageSource, Split, sha256
from datamodules.sources.held_out import part
from datamodules.sources.tar_index import NO_LABEL, TarIndex, read_index
from polytoken.errors import MissingFileError, UserError
from polytoken.images import open_image
from polytoken.ranges import below_one

SPLIT_WORDS: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
}
COMPRESSED = ("tar.gz", "tgz", "tar.bz2", "tar.xz", "tar.zst")
INDEX_THREADS = 16  # they wait for a network file system in turns
OPEN_FILES_SHARE = 4  # of the files that a process may open; torch needs some to pass tensors


class WebDatasetSource(ImageSource):
    """Images in tar shards: members `<key>.jpg` (or another image) with `<key>.cls`, the class in digits.

    A million small files become some hundred large ones. Order and resuming are those of any source, since an index of
    the members, made once and cached, leads to each image; nothing is copied, and no buffer shuffles. The class may
    also be the field `label` of `<key>.json`. Classes are numbered as the shards number them.

    Shards are all `.tar` files below `root`, in the order of their names. Words of their paths name the split, as in
    `imagenet-train-0000.tar` and `imagenet-val-0000.tar`, or `train/0000.tar` and `validation/0000.tar`.

    Args:
        root: The folder of the shards.
        held_out: Share of the training images that are the validation split, drawn by their number. Shards of
            validation are not read then, and without any that are named for a split, all are read. 0 reads them.
        labelled: Images have labels. False reads all images as one class, `all`.
    """

    def __init__(self, root: str, held_out: float = 0.0, labelled: bool = True) -> None:
        below_one(self, held_out=held_out)
        self.root, self.held_out, self.labelled = Path(root), held_out, labelled
        self._read: dict[Split, TarRecords] = {}
        self._class_to_idx: dict[str, int] | None = None

    @property
    def class_to_idx(self) -> dict[str, int]:
        """Class numbers by name: the numbers up to the largest label of the training shards, or `all` alone."""
        if self._class_to_idx is None:
            largest = int(self._shards("train").labels.max())
            if largest >= LARGEST_LABEL:
                raise UserError(
                    f"{self.root} has the label {largest}: classes are numbered from 0; set labelled to false to read "
                    "all images as one class"
                )
            names = [str(number) for number in range(largest + 1)] if self.labelled else [UNLABELLED]
            self._class_to_idx = {name: index for index, name in enumerate(names)}
            kind = f"{len(names)} classes, by number" if self.labelled else f"no labels, one class named {UNLABELLED}"
            rank_zero_info(f"{self.root} is read as tar shards of images of {kind}")
        return self._class_to_idx

    def prepare(self) -> None:
        """Index the shards that are new or have changed; other processes then read their indexes."""
        for name in SPLITS[:1] if self.held_out else SPLITS:
            self._shards(name)

    def split(self, name: Split) -> ImageRecords:
        """Open one split.

        Raises:
            MissingFileError: The folder or the shards of the split are missing.
            UserError: A shard is compressed or damaged, an image has no label or one that training lacks, or `held_out`
                leaves a split empty.
        """
        if self.held_out:
            return part(self._shards("train"), self.held_out, name, str(self.root))
        records, count = self._shards(name), len(self.class_to_idx)
        if (largest := int(records.labels.max())) >= count:
            raise UserError(
                f"{records.describe(int(records.labels.argmax()))} is of class {largest}, and the training shards have "
                f"classes 0 to {count - 1}: both splits must number their classes alike"
            )
        return records

    def _shards(self, name: Split) -> TarRecords:
        if name not in self._read:
            shards = self._names(name)
            rank_zero_info(
                f"{self.root}: reading the index of {len(shards)} {name} shards; new shards are indexed first"
            )
            with ThreadPoolExecutor(INDEX_THREADS) as pool:
                indexes = list(pool.map(read_index, [self.root / shard for shard in shards]))
            records = TarRecords(self.root, shards, indexes)
            if not self.labelled:
                records.labels = np.zeros_like(records.labels)
            elif (bare := np.flatnonzero(records.labels == NO_LABEL)).size:
                raise UserError(
                    f"{records.describe(int(bare[0]))} has no label ({bare.size} such images): pack its class, an "
                    f"integer from 0 to {LARGEST_LABEL - 1:,}, as the member <key>.cls or the field label of "
                    "<key>.json, or set labelled to false to read all images as one class"
                )
            self._read[name] = records
        return self._read[name]

    def _names(self, name: Split) -> list[str]:
        if not self.root.is_dir():
            raise MissingFileError(f"{self.root} is not a folder: name the one of the tar shards as root")
        shards = tar_shards(self.root)
        found = [shard for shard in shards if split_of(shard) == name]
        if self.held_out and not any(map(split_of, shards)):
            found = shards
        if not found:
            others = f" among {len(shards)} others, such as {shards[0]}" if shards else ""
            short = "train" if name == "train" else "val"
            raise MissingFileError(
                f"{self.root} has no {name} shards{others}: name them as in {short}-0000.tar or {short}/0000.tar"
                f"{'' if self.held_out else ', or set held_out (0.05) to hold out a share of the images'}"
            )
        return found


def tar_shards(root: Path) -> list[str]:
    """Sorted paths, relative to a folder, of the tar files in it and in its folders.

    Raises:
        UserError: One of them is compressed.
    """
    if packed := next((path for ending in COMPRESSED for path in _files(root, ending)), None):
        raise UserError(
            f"{root / packed} is compressed, and its images could be read in their order only: decompress it to a "
            "plain .tar, as with gunzip (images hardly grow), or move it elsewhere"
        )
    return _files(root, "tar")


def holds_shards(root: Path) -> bool:
    """True for a folder with tar files in it, or in a folder named like a split."""
    return any(any(place.glob("*.tar")) for place in (root, *(root / word for word in SPLIT_WORDS)))


def split_of(shard: str) -> Split | None:
    """The split that the last such word of a path names: `validation` for `imagenet-val-0000.tar`."""
    words = reversed(re.findall("[a-z]+", shard.lower()))
    return next((SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS), None)


def _files(root: Path, ending: str) -> list[str]:
    paths = (path for pattern in (f"*.{ending}", f"*/*.{ending}") for path in root.glob(pattern))
    names = (path.relative_to(root) for path in paths)
    return sorted(str(name) for name in names if not any(part.startswith(".") for part in name.parts))


class TarRecords(ImageRecords):
    """The images of one split.

    Args:
        root: The folder of the shards.
        shards: Their paths, relative to it.
        indexes: Their images.
    """

    def __init__(self, root: Path, shards: list[str], indexes: Sequence[TarIndex]) -> None:
        self.paths, self.shards = [str(root / shard) for shard in shards], shards
        self.shard_of = np.repeat(np.arange(len(shards), dtype=np.int32), [len(index.offsets) for index in indexes])
        self.offsets = np.concatenate([index.offsets for index in indexes])
        self.sizes = np.concatenate([index.sizes for index in indexes])
        self.labels = np.concatenate([index.labels for index in indexes])
        self.names = b"".join(index.names.tobytes() for index in indexes)
        lengths = np.concatenate([np.diff(index.bounds) for index in indexes])
        self.bounds = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        self._files = OpenFiles()

    def __len__(self) -> int:
        return len(self.offsets)

    def load(self, index: int) -> Image.Image:
        """Read and decode image `index`."""
        return open_image(self._read(index))

    def load_reduced(self, index: int, shorter_side: int) -> Image.Image:
        return open_image(self._read(index), shorter_side)

    def label(self, index: int) -> int:
        """Return the class of image `index`."""
        return int(self.labels[index])

    def describe(self, index: int) -> str:
        """Return the path of the shard and the name of the member."""
        name = os.fsdecode(self.names[self.bounds[index] : self.bounds[index + 1]])
        return f"{self.paths[self.shard_of[index]]}: {name}"

    def digest(self) -> str:
        """Digest of shards, names, sizes and classes; not of the folder that holds the shards."""
        shards = b"\0".join(map(os.fsencode, self.shards))
        return sha256(shards, self.shard_of, self.names, self.bounds, self.sizes, self.labels)

    def _read(self, index: int) -> bytes:
        size = int(self.sizes[index])
        content = os.pread(self._files[self.paths[self.shard_of[index]]], size, int(self.offsets[index]))
        if len(content) < size:
            raise OSError("the shard was truncated since it was indexed")
        return content


class OpenFiles:
    """Descriptors of files that were read last; a process of its own opens its own."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, int] = OrderedDict()
        self._limit = max(1, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // OPEN_FILES_SHARE)

    def __getitem__(self, path: str) -> int:
        if path in self._open:
            self._open.move_to_end(path)
        else:
            while len(self._open) >= self._limit:
                os.close(self._open.popitem(last=False)[1])
            self._open[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        return self._open[path]

    def __del__(self) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)

    def __reduce__(self) -> tuple[Any, ...]:
        return OpenFiles, ()
