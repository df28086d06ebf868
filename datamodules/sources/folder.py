"""Images in a tree with one folder a class, the form in which ImageNet is distributed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

from datamodules.sources.base import ImageRecords, ImageSource, Split
from polytoken.errors import MissingFileError, UserError
from polytoken.images import open_image

EXTENSIONS = (".jpeg", ".jpg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff")  # in upper or lower case

SPLIT_FOLDERS: dict[Split, tuple[str, ...]] = {"train": ("train",), "validation": ("val", "validation")}


class FolderSource(ImageSource):
    """Images at `root/train/<class>/<file>` and `root/val/<class>/<file>` (or `validation/`).

    Classes are numbered in the order of their sorted names, as in torchvision's ImageFolder, and images are sorted by
    class and file name. Only files directly in a class folder count; hidden files and other extensions are ignored.

    Args:
        root: The folder that holds `train` and `val`.
    """

    def __init__(self, root: str) -> None:
        self.root = Path(root)
        self._class_to_idx: dict[str, int] | None = None

    @property
    def class_to_idx(self) -> dict[str, int]:
        """Class numbers by name: the sorted names of the folders in `train`."""
        if self._class_to_idx is None:
            folder = self._split_folder("train")
            self._class_to_idx = {name: index for index, name in enumerate(_class_folders(folder))}
        return self._class_to_idx

    def split(self, name: Split) -> FolderRecords:
        """List the files of one split.

        Raises:
            MissingFileError: The root, the split or a class's images are missing.
            UserError: The validation split has a class that the training split lacks.
        """
        folder = self._split_folder(name)
        classes = _class_folders(folder)
        if unknown := [wnid for wnid in classes if wnid not in self.class_to_idx]:
            raise UserError(
                f"{folder / unknown[0]} is a class that {self._split_folder('train')} lacks ({len(unknown)} such "
                "classes): both splits must name their class folders alike."
            )
        folders: list[str] = []
        class_indices: list[int] = []
        file_names: list[list[str]] = []
        for wnid in classes:
            folders.append(str(folder / wnid))
            class_indices.append(self.class_to_idx[wnid])
            file_names.append(image_names(folder / wnid))
        return FolderRecords(folders, class_indices, file_names)

    def _split_folder(self, name: Split) -> Path:
        if not self.root.is_dir():
            raise MissingFileError(f"{self.root} is not a folder: set data.source.root to the one that holds train/.")
        for candidate in SPLIT_FOLDERS[name]:
            if (self.root / candidate).is_dir():
                return self.root / candidate
        wanted = " or ".join(f"{candidate}/" for candidate in SPLIT_FOLDERS[name])
        raise MissingFileError(f"{self.root} has no {wanted}: put the {name} images there, one folder a class.")


class FolderRecords(ImageRecords):
    """The files of one split. Names are kept in one block of bytes: a million strings would burden every worker.

    Args:
        folders: The class folders of this split.
        class_indices: The class of each folder.
        file_names: The sorted file names in each folder.
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


def _class_folders(split_folder: Path) -> list[str]:
    with os.scandir(split_folder) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise MissingFileError(f"{split_folder} has no class folders: expected {split_folder}/<class>/<image>.")
    return names


def image_names(folder: Path) -> list[str]:
    """Sorted names of the image files in a folder.

    Raises:
        MissingFileError: There is no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise MissingFileError(f"{folder} is not a folder: name one that holds images.")
    with os.scandir(folder) as entries:
        names = sorted(
            entry.name
            for entry in entries
            if entry.name.lower().endswith(EXTENSIONS) and not entry.name.startswith(".") and entry.is_file()
        )
    if not names:
        raise MissingFileError(f"The folder {folder} holds no images ({', '.join(EXTENSIONS)}): fill it, or remove it.")
    return names
