"""Names of the image files in a folder and the folders below it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from lightning.pytorch.utilities import rank_zero_warn

from polytoken.errors import MissingFileError, UserError

EXTENSIONS = (".jpeg", ".jpg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff")  # in upper or lower case
SPLIT_NAMES = ("train", "training", "val", "valid", "validation", "test", "testing")


class Listing(NamedTuple):
    """Names of the images of a folder, relative to it, and of its other files."""

    images: list[str]
    others: list[str]


def list_images(folder: Path) -> Listing:
    """List the images in a folder and below it, in the order of torchvision's ImageFolder.

    Files and folders whose names begin with a dot are left out. A folder that is linked to several times is read once,
    so that links cannot lead in circles. A link with the name of an image that leads nowhere is listed: reading it
    fails, and such images are counted.

    Raises:
        MissingFileError: There is no such folder, or no image in it.
        UserError: A folder may not be read.
    """
    if not folder.is_dir():
        raise MissingFileError(f"{folder} is not a folder: name one that holds images.")
    found = Listing([], [])
    own = Path(os.path.realpath(folder))
    seen = {str(path) for path in (own, *own.parents)}  # a link to one of them would add the images of other classes
    for place, folders, files in os.walk(folder, onerror=_refuse, followlinks=True):
        folders[:] = [name for name in sorted(folders) if not name.startswith(".") and _first(place, name, seen)]
        below = os.path.relpath(place, folder)
        for name in files:
            if not name.startswith("."):
                kind = found.images if name.lower().endswith(EXTENSIONS) else found.others
                kind.append(name if below == os.curdir else os.path.join(below, name))
    if not found.images:
        others = f", and {len(found.others)} other files such as {min(found.others)}" if found.others else ""
        raise MissingFileError(
            f"The folder {folder} holds no images ({', '.join(EXTENSIONS)}){others}: fill it, or remove it."
        )
    return Listing(sorted(found.images, key=os.path.split), sorted(found.others))


def warn_of_others(folder: Path, listings: Sequence[Listing]) -> None:
    """Warn of the files in the folders of one data set that are not read, with their number."""
    others = [name for listing in listings for name in listing.others]
    if others:
        rank_zero_warn(
            f"{folder} holds {sum(len(listing.images) for listing in listings)} images, and {len(others)} files with "
            f"other endings, which are not read, such as {others[0]}: images end in {', '.join(EXTENSIONS)}"
        )


def class_folders(folder: Path) -> list[str]:
    """Sorted names of the folders in a folder of one split.

    Raises:
        MissingFileError: There are none, or one is a link that leads nowhere.
        UserError: The name of one is not UTF-8.
    """
    names: list[str] = []
    beside: list[str] = []
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        if name.startswith("."):
            continue
        if os.path.isdir(path):
            if os.fsencode(name).decode(errors="replace") != name:  # no record could hold it
                raise UserError(f"{path!r} is a class whose name is not UTF-8: rename the folder")
            names.append(name)
        elif name.lower().endswith(EXTENSIONS):
            beside.append(name)
        elif not os.path.exists(path):
            raise MissingFileError(f"{path} is a link that leads nowhere, or in a circle: repair or remove it.")
    if beside and not names:
        raise MissingFileError(
            f"{folder} holds {len(beside)} images and no class folders: sort them into {folder}/<class>/ as in train, "
            "or set labelled to false to read all images as one class."
        )
    if not names:
        raise MissingFileError(f"{folder} has no class folders and no images: expected {folder}/<class>/<image>.")
    if beside:
        rank_zero_warn(
            f"{folder} holds {len(beside)} images next to its class folders, which are not read, such as {beside[0]}: "
            "move them into the folders of their classes"
        )
    return names


def is_flat(folder: Path) -> bool:
    """True for a folder that holds images and no folders: there are no classes."""
    names = [name for name in os.listdir(folder) if not name.startswith(".")]
    return any(name.lower().endswith(EXTENSIONS) for name in names) and not any(
        os.path.isdir(os.path.join(folder, name)) for name in names
    )


def check_classes(folder: Path, names: Sequence[str]) -> None:
    """Refuse folders that are hardly classes, in a folder without `train`.

    Raises:
        UserError: A folder is named like a split, or images lie next to the folders.
    """
    if splits := [name for name in names if name.lower() in SPLIT_NAMES]:
        raise UserError(
            f"{folder / splits[0]} looks like a split and not like a class: name the folders of the splits train and "
            "val, or name a folder that holds classes alone as the root."
        )
    if any(name.lower().endswith(EXTENSIONS) for name in os.listdir(folder) if not name.startswith(".")):
        raise UserError(
            f"{folder} holds images next to its folders, so the folders may be classes or not: move the images into "
            "the folders of their classes, or set labelled to false to read all of them as one class."
        )


def _first(place: str, name: str, seen: set[str]) -> bool:
    """True for a folder that was not met before under any name; notes it."""
    path = os.path.realpath(os.path.join(place, name))
    known = path in seen
    seen.add(path)
    return not known


def _refuse(error: OSError) -> NoReturn:
    raise UserError(f"{error.filename} cannot be listed ({error.strerror}): allow reading it, or remove it.") from error
