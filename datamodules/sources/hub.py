"""Images from the Hugging Face `datasets` library, on disk or on the hub."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_info
from PIL import Image

from datamodules.sources.base import LARGEST_LABEL, UNLABELLED, ImageRecords, ImageSource, Split, sha256
from datamodules.sources.held_out import part
from polytoken.errors import MissingFileError, UserError
from polytoken.images import open_image
from polytoken.ranges import below_one

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict


PROBED = 16  # rows whose bytes tell data sets of equal labels apart


class HubSource(ImageSource):
    """An image data set of the `datasets` library.

    Classes are numbered by the label column's names (ClassLabel), by its integers, or by its sorted strings. Listing
    decodes no image, and the library never does: rows are read as bytes. Except for `save_to_disk` folders, the library
    keeps a converted copy under `HF_HOME`, as large as the data set.

    Args:
        path: A folder written by `save_to_disk`, a folder of Parquet or Arrow files or of tar shards (WebDataset), an
            `imagefolder` tree, or a name on the hub.
        image_column: Column of the images: encoded bytes, paths, or the library's Image feature.
        label_column: Column of the labels. None reads all images as one class, `all`.
        train_split: The library's name of the training split.
        validation_split: The library's name of the validation split.
        name: Configuration of the data set, if it has several.
        revision: Branch, tag or commit on the hub.
        held_out: Share of the training split that is the validation split, drawn by the number of the row;
            `validation_split` is not read then. 0 reads it.
    """

    def __init__(
        self,
        path: str,
        image_column: str = "image",
        label_column: str | None = "label",
        train_split: str = "train",
        validation_split: str = "validation",
        name: str | None = None,
        revision: str | None = None,
        held_out: float = 0.0,
    ) -> None:
        below_one(self, held_out=held_out)
        self.held_out = held_out
        self.path, self.name, self.revision = path, name, revision
        self.image_column, self.label_column = image_column, label_column
        self.split_names: dict[Split, str] = {"train": train_split, "validation": validation_split}
        self._class_to_idx: dict[str, int] | None = None

    @property
    def class_to_idx(self) -> dict[str, int]:
        """Class numbers by name, from the training split's label column."""
        if self._class_to_idx is None:
            table = self._table("train")
            names = [UNLABELLED] if self.label_column is None else self._class_names(table, self.label_column)
            self._class_to_idx = {name: index for index, name in enumerate(names)}
            kind = f"no labels, one class named {UNLABELLED}"
            if self.label_column is not None:
                kind = f"{len(names)} classes, by column {self.label_column!r}"
            rank_zero_info(f"{self.path} is read as images of {kind}")
        return self._class_to_idx

    @cached_property
    def splits(self) -> DatasetDict:
        """All splits under the names of the library."""
        return self._open()

    def split(self, name: Split) -> ImageRecords:
        """Open one split and read its labels.

        Raises:
            MissingFileError: The folder is missing.
            UserError: The split or a column is missing, the labels do not fit the training split's classes, or
                `held_out` leaves a split empty.
        """
        if self.held_out:
            return part(self._rows("train"), self.held_out, name, self.path)
        return self._rows(name)

    def _rows(self, name: Split) -> HubRecords:
        from datasets import Image as ImageFeature

        table = self._table(name)
        column, count = self.label_column, len(table)
        labels = np.zeros(count, dtype=np.int64) if column is None else self._labels(table, column, name)
        images = table.select_columns([self.image_column]).cast_column(self.image_column, ImageFeature(decode=False))
        return HubRecords(images, self.image_column, labels, f"{self.path}[{self.split_names[name]}]")

    def _table(self, name: Split) -> Dataset:
        split = self.split_names[name]
        if split not in self.splits:
            without = ", or set held_out (0.05) to hold out a share of the training split"
            raise UserError(
                f"{self.path} has no split {split!r}, only {', '.join(self.splits)}: set {name}_split to one of these"
                f"{without if name == 'validation' else ''}."
            )
        table = self.splits[split]
        for argument, column in (("image_column", self.image_column), ("label_column", self.label_column)):
            if column is not None and column not in table.column_names:
                without = ", or to null for images without labels" if column == self.label_column else ""
                raise UserError(
                    f"{self.path}[{split}] has no column {column!r}, only {', '.join(table.column_names)}: "
                    f"set {argument} to one of these{without}."
                )
        return table

    def _open(self) -> DatasetDict:
        from datasets import DatasetDict, load_dataset, load_from_disk

        folder = Path(self.path)
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            splits = self._loaded(lambda: load_from_disk(self.path))
            if not isinstance(splits, DatasetDict) and self.held_out:
                return DatasetDict({self.split_names["train"]: splits})
            if not isinstance(splits, DatasetDict):
                raise UserError(
                    f"{self.path} holds a single split: save a DatasetDict with {self.split_names['train']!r} and "
                    f"{self.split_names['validation']!r} by save_to_disk, or set held_out (0.05) to hold "
                    "out a share of it."
                )
            return splits
        # without this check a mistyped path would be looked up on the hub
        if not folder.exists() and (folder.is_absolute() or self.path.startswith(".") or self.path.count("/") > 1):
            raise MissingFileError(
                f"{self.path} does not exist: name a folder or a data set of the hub as the path of HubSource."
            )
        return self._loaded(lambda: load_dataset(self.path, self.name, revision=self.revision))

    def _loaded(self, load: Callable[[], Any]) -> Any:
        """Call `load`; every error of the library becomes a UserError with its reason."""
        try:
            return load()
        except Exception as error:  # datasets reads its records unchecked, so a damaged one raises any class
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"the data set {self.path} cannot be read ({type(error).__name__}: {reason}): save or download it again"
            ) from error

    def _class_names(self, table: Dataset, column: str) -> list[str]:
        from datasets import ClassLabel

        feature = table.features[column]
        if isinstance(feature, ClassLabel):
            return list(feature.names)
        values = np.unique(self._column(table, column))
        if np.issubdtype(values.dtype, np.integer):
            if values.max() >= LARGEST_LABEL:
                raise UserError(
                    f"Column {column!r} of {self.path} holds the label {values.max()}: classes are numbered "
                    "from 0; set label_column to the column of the classes."
                )
            return [str(index) for index in range(int(values.max()) + 1)]
        return [str(value) for value in values]

    def _column(self, table: Dataset, column: str) -> np.ndarray:
        values = self._loaded(lambda: np.asarray(table.select_columns([column]).with_format("numpy")[:][column]))
        kinds = {type(value) for value in values}  # a column of strings with a missing one is an array of objects
        if not all(issubclass(kind, str | np.integer) for kind in kinds):
            names = ", ".join(sorted(kind.__name__ for kind in kinds))
            raise UserError(
                f"Column {column!r} of {self.path} holds {names}: expected integers or strings, none of them missing; "
                "set label_column to the column of the classes."
            )
        return values

    def _labels(self, table: Dataset, column: str, name: Split) -> np.ndarray:
        from datasets import ClassLabel

        values = self._column(table, column)
        feature = table.features[column]
        if isinstance(feature, ClassLabel):
            known = [feature.int2str(int(value)) if value >= 0 else str(value) for value in np.unique(values)]
        else:
            known = [str(value) for value in np.unique(values)]
        if unknown := [value for value in known if value not in self.class_to_idx]:
            raise UserError(
                f"{self.path}[{self.split_names[name]}] has the label {unknown[0]!r}, which the classes of "
                f"{self.split_names['train']!r} lack: choose a labelled split of the same data set."
            )
        lookup = np.array([self.class_to_idx[value] for value in known], dtype=np.int64)
        return lookup[np.unique(values, return_inverse=True)[1]]


class HubRecords(ImageRecords):
    """The rows of one split: `images` with one column of encoded bytes or paths, `labels` int64 (n,)."""

    def __init__(self, images: Dataset, column: str, labels: np.ndarray, name: str) -> None:
        self.images, self.column, self.labels, self.name = images, column, labels, name

    def __len__(self) -> int:
        return len(self.labels)

    def load(self, index: int) -> Image.Image:
        """Decode the image of row `index`."""
        return open_image(self._encoded(index))

    def load_reduced(self, index: int, shorter_side: int) -> Image.Image:
        return open_image(self._encoded(index), shorter_side)

    def label(self, index: int) -> int:
        """Return the class of row `index`."""
        return int(self.labels[index])

    def describe(self, index: int) -> str:
        """Name split and row, and the file if the row knows it."""
        try:
            row = self._row(index)
        except UserError:
            row = None
        path = row["path"] if row else None
        return f"{self.name} row {index}" + (f" ({os.fspath(path)})" if path else "")

    def _encoded(self, index: int) -> str | bytes:
        row = self._row(index)
        encoded = row and (row["path"] if row["bytes"] is None else row["bytes"])
        if encoded is None:
            raise UserError("the row has no image")
        return encoded

    def _row(self, index: int) -> dict[str, Any] | None:
        """Bytes or path of an image, or None; raises UserError if the table is damaged there."""
        try:
            return self.images[index][self.column]
        except Exception as error:  # pyarrow trusts the offsets of a mapped table, and raises any class
            raise UserError(f"row {index} of {self.name} is damaged ({type(error).__name__}: {error})") from error

    def digest(self) -> str:
        """Digest of the labels, and of the encoded bytes or the file names of some rows, evenly spread."""
        rows = [self._row(index) for index in {index * len(self) // PROBED for index in range(PROBED)}]
        some = (row and (row["bytes"] or os.fsencode(os.path.basename(row["path"] or ""))) for row in rows)
        return sha256(self.labels, *(one or b"" for one in some))
