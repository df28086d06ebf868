"""Images in folders: one a class, as ImageNet is distributed, or without labels."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from lightning.pytorch.utilities import rank_zero_info
from PIL import Image

from datamodules.sources.base import UNLABELLED, ImageRecords, ImageSource, Split, sha256
from datamodules.sources.held_out import part
from datamodules.sources.listing import check_classes, class_folders, is_flat, list_images, warn_of_others
from polytoken.errors import MissingFileError, UserError
from polytoken.images import open_image
from polytoken.ranges import below_one

SPLIT_FOLDERS: dict[Split, tuple[str, ...]] = {"train": ("train",), "validation": ("val", "validation")}


class FolderSource(ImageSource):
    """Images in folders: `root/train/<class>/<file>` and `root/val/<class>/<file>` (or `validation/`).

    Classes are numbered in the order of their sorted names, as in torchvision's ImageFolder, and images are sorted by
    class, folder and file name. Images in folders below a class folder count too; hidden files are ignored, and files
    with other endings are counted in a warning.

    Images without labels lie directly in `train` and `val`: all of them are of one class, `all`. With `held_out`, the
    class folders or the images may lie directly in `root`, which then has no `train`.

    Args:
        root: The folder that holds `train` and `val`, or all images.
        held_out: Share of the training images that are the validation split, drawn by their number; `val` is not read
            then. 0 reads `val`.
        labelled: Folders are classes. False reads the images of all folders as one class, `all`.
    """

    def __init__(self, root: str, held_out: float = 0.0, labelled: bool = True) -> None:
        below_one(self, held_out=held_out)
        self.root, self.held_out, self.labelled = Path(root), held_out, labelled
        self._class_to_idx: dict[str, int] | None = None

    @property
    def class_to_idx(self) -> dict[str, int]:
        """Class numbers by name: the sorted names of the training folders, or `all` alone without labels."""
        if self._class_to_idx is None:
            folder = self._split_folder("train")
            names = class_folders(folder) if self.labelled and not is_flat(folder) else []
            if folder == self.root and names:
                check_classes(folder, names)
            self._class_to_idx = {name: index for index, name in enumerate(names or [UNLABELLED])}
            self._flat = not names
            kind = f"{len(names)} classes, one a folder" if names else f"no labels, one class named {UNLABELLED}"
            rank_zero_info(f"{folder} is read as images of {kind}")
        return self._class_to_idx

    def split(self, name: Split) -> ImageRecords:
        """List the files of one split.

        Raises:
            MissingFileError: The root, the split or a class's images are missing.
            UserError: The validation split has a class that the training split lacks, folders are no classes, or
                `held_out` leaves a split empty.
        """
        if self.held_out:
            return part(self._files("train"), self.held_out, name, str(self.root))
        return self._files(name)

    def _files(self, name: Split) -> FolderRecords:
        folder, known = self._split_folder(name), self.class_to_idx
        classes = [""] if self._flat else class_folders(folder)  # joined to a path, "" keeps its name out of the digest
        if unknown := [wnid for wnid in classes if wnid and wnid not in known]:
            raise UserError(
                f"{folder / unknown[0]} is a class that {self._split_folder('train')} lacks ({len(unknown)} such "
                "classes): both splits must name their class folders alike."
            )
        listings = [list_images(folder / wnid) for wnid in classes]
        warn_of_others(folder, listings)
        return FolderRecords(
            [os.path.join(folder, wnid) for wnid in classes],
            [known[wnid or UNLABELLED] for wnid in classes],
            [listing.images for listing in listings],
        )

    def _split_folder(self, name: Split) -> Path:
        if not self.root.is_dir():
            raise MissingFileError(
                f"{self.root}, the root of FolderSource, is not a folder: name the one that holds train/."
            )
        for candidate in SPLIT_FOLDERS[name]:
            if (self.root / candidate).is_dir():
                return self.root / candidate
        others = [folder for folders in SPLIT_FOLDERS.values() for folder in folders]
        if self.held_out and not any((self.root / folder).is_dir() for folder in others):
            return self.root
        if any(self.root.glob("*.tar")):
            raise UserError(f"{self.root} holds tar shards: name datamodules.WebDatasetSource as its source.")
        wanted = " or ".join(f"{candidate}/" for candidate in SPLIT_FOLDERS[name])
        without = "of train/, or of the images and classes in the folder itself"
        raise MissingFileError(
            f"{self.root} has no {wanted}: put the {name} images there, one folder per class, or without labels"
            f"{'' if self.held_out else f', or set held_out (0.05) to hold out a share {without}'}."
        )


class FolderRecords(ImageRecords):
    """The files of one split. Names are kept in one block of bytes: a million strings would burden every worker.

    Args:
        folders: The class folders of this split.
        class_indices: The class of each folder.
        file_names: The sorted file names in each folder, relative to it.
    """

    def __init__(self, folders: list[str], class_indices: list[int], file_names: list[list[str]]) -> None:
        encoded = [os.fsencode(name) for names in file_names for name in names]
        self.folders = folders
        self.class_indices = np.array(class_indices, dtype=np.int64)
        self.folder_of = np.repeat(np.arange(len(folders), dtype=np.int32), [len(names) for names in file_names])
        self.names = b"".join(encoded)
        self.bounds = np.concatenate([[0], np.cumsum([len(name) for name in encoded], dtype=np.int64)])

    def __len__(self) -> int:
        return len(self.folder_of)

    def load(self, index: int) -> Image.Image:
        """Read and decode file `index`."""
        return open_image(self.describe(index))

    def load_reduced(self, index: int, shorter_side: int) -> Image.Image:
        return open_image(self.describe(index), shorter_side)

    def label(self, index: int) -> int:
        """Return the class of the folder that file `index` lies in."""
        return int(self.class_indices[self.folder_of[index]])

    def describe(self, index: int) -> str:
        """Return the path of file `index`."""
        name = os.fsdecode(self.names[self.bounds[index] : self.bounds[index + 1]])
        return os.path.join(self.folders[self.folder_of[index]], name)

    def digest(self) -> str:
        """Digest of class folders, classes and file names; not of the folder that holds them."""
        folders = b"\0".join(os.fsencode(os.path.basename(folder)) for folder in self.folders)
        return sha256(folders, self.class_indices, self.folder_of, self.names, self.bounds)
