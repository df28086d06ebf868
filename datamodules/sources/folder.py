"""Images in a tree with one folder a class, the form in which ImageNet is distributed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

from datamodules.sources.base import ImageRecords, ImageSource, Split, sha256
from datamodules.sources.held_out import check_share, part
from datamodules.sources.listing import class_folders, list_images, warn_of_others
from polytoken.errors import MissingFileError, UserError
from polytoken.images import open_image

SPLIT_FOLDERS: dict[Split, tuple[str, ...]] = {"train": ("train",), "validation": ("val", "validation")}


class FolderSource(ImageSource):
    """Images at `root/train/<class>/<file>` and `root/val/<class>/<file>` (or `validation/`).

    Classes are numbered in the order of their sorted names, as in torchvision's ImageFolder, and images are sorted by
    class, folder and file name. Images in folders below a class folder count too; hidden files are ignored, and files
    with other endings are counted in a warning.

    Args:
        root: The folder that holds `train` and `val`.
        held_out: Share of the images in `train` that are the validation split, drawn by their number; `val` is not read
            then. 0 reads `val`.
    """

    def __init__(self, root: str, held_out: float = 0.0) -> None:
        check_share(held_out)
        self.root, self.held_out = Path(root), held_out
        self._class_to_idx: dict[str, int] | None = None

    @property
    def class_to_idx(self) -> dict[str, int]:
        """Class numbers by name: the sorted names of the folders in `train`."""
        if self._class_to_idx is None:
            folder = self._split_folder("train")
            self._class_to_idx = {name: index for index, name in enumerate(class_folders(folder))}
        return self._class_to_idx

    def split(self, name: Split) -> ImageRecords:
        """List the files of one split.

        Raises:
            MissingFileError: The root, the split or a class's images are missing.
            UserError: The validation split has a class that the training split lacks, or `held_out` leaves a split
                empty.
        """
        if self.held_out:
            return part(self._files("train"), self.held_out, name, str(self.root))
        return self._files(name)

    def _files(self, name: Split) -> FolderRecords:
        folder = self._split_folder(name)
        classes = class_folders(folder)
        if unknown := [wnid for wnid in classes if wnid not in self.class_to_idx]:
            raise UserError(
                f"{folder / unknown[0]} is a class that {self._split_folder('train')} lacks ({len(unknown)} such "
                "classes): both splits must name their class folders alike."
            )
        listings = [list_images(folder / wnid) for wnid in classes]
        warn_of_others(folder, listings)
        return FolderRecords(
            [str(folder / wnid) for wnid in classes],
            [self.class_to_idx[wnid] for wnid in classes],
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
        wanted = " or ".join(f"{candidate}/" for candidate in SPLIT_FOLDERS[name])
        without = ", or set held_out (0.05) to hold out a share of train/" if name == "validation" else ""
        raise MissingFileError(
            f"{self.root} has no {wanted}: put the {name} images there, one folder a class{without}."
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
