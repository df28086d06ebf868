"""Own images at a first look: where they are, their classes, their sizes, and files that cannot be read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from commands.preset import spread
from commands.progress import track
from datamodules.sources import FolderSource, HubSource, WebDatasetSource
from datamodules.sources.base import SPLITS, ImageSource, Split
from datamodules.sources.folder import SPLIT_FOLDERS
from datamodules.sources.webdataset import holds_shards, split_of, tar_shards
from polytoken.errors import MissingFileError, UserError
from polytoken.images import UNREADABLE

if TYPE_CHECKING:
    from datasets import Dataset

SAMPLE = 256  # images of a split that are opened
LABEL_NAMES = ("label", "cls")  # cls: of tar shards (WebDataset)
VALIDATION_NAMES = ("validation", "val", "valid", "test")  # splits of the hub, the first that exists
HELD_OUT = ((1000, 0.05), (200, 0.1), (0, 0.2))  # share for validation, by the number of images


@dataclass(frozen=True)
class Survey:
    """Properties of a data set from which a preset is chosen.

    Args:
        source: class and arguments of its source, as a config states them.
        classes: names of the classes; empty without labels. A single class counts as no label.
        count: images of each split.
        shorter_side: median shorter side of the opened images, in pixels.
        unreadable: places of the opened images that cannot be read.
        bad_fraction: their share in the split that has more of them.
    """

    source: dict[str, Any]
    classes: list[str]
    count: dict[Split, int]
    shorter_side: int
    unreadable: list[str]
    bad_fraction: float


def folder(place: str, labelled: bool = True) -> dict[str, Any]:
    """The source of a folder of images or of tar shards: its own splits, or a share held out where it has none.

    Raises:
        UserError: there is no such folder, or it is a data set of the Hugging Face library.
    """
    root = Path(place).expanduser().absolute()
    if not root.is_dir():
        raise MissingFileError(f"{place} is not a folder: name one of images by DATA=/path")
    if any((root / name).exists() for name in ("dataset_dict.json", "state.json")):
        raise UserError(f"{place} is a data set of the Hugging Face library: name it by HUB= instead of DATA=")
    kind: type[FolderSource] | type[WebDatasetSource] = FolderSource
    has_validation = any((root / name).is_dir() for name in SPLIT_FOLDERS["validation"])
    if holds_shards(root):
        kind = WebDatasetSource
        has_validation = "validation" in map(split_of, tar_shards(root))
    arguments: dict[str, Any] = {"root": str(root)}
    if not has_validation:
        whole = kind(str(root), 0.5, labelled)
        arguments["held_out"] = _share(sum(len(whole.split(split)) for split in SPLITS))
    if not labelled:
        arguments["labelled"] = False
    return {"class_path": f"datamodules.{kind.__name__}", "init_args": arguments}


def hub(place: str, labelled: bool = True) -> dict[str, Any]:
    """The source of a data set of the Hugging Face library: a folder, or a name on the hub.

    Columns and splits are found by their kinds and names.

    Raises:
        UserError: there is no column of images, or several could be the labels.
    """
    path = str(Path(place).expanduser().absolute()) if Path(place).expanduser().exists() else place
    splits = HubSource(path, held_out=0.5).splits
    train = "train" if "train" in splits else next(iter(splits))
    images, labels = _columns(splits[train], place)
    arguments: dict[str, Any] = {"path": path}
    if images != "image":
        arguments["image_column"] = images
    if not labelled or labels != "label":
        arguments["label_column"] = labels if labelled else None
    if train != "train":
        arguments["train_split"] = train
    validation = next((name for name in VALIDATION_NAMES if name in splits and name != train), None)
    if validation is None:
        arguments["held_out"] = _share(len(splits[train]))
    elif validation != "validation":
        arguments["validation_split"] = validation
    return {"class_path": "datamodules.HubSource", "init_args": arguments}


def survey(source: dict[str, Any]) -> Survey:
    """Open a sample of the images of both splits.

    Raises:
        UserError: none of them can be read, or the source is refused.
    """
    kinds: dict[str, type[ImageSource]] = {
        f"datamodules.{kind.__name__}": kind for kind in (FolderSource, WebDatasetSource, HubSource)
    }
    opened = kinds[source["class_path"]](**source["init_args"])
    sides: list[int] = []
    bad: list[str] = []
    shares = []
    count: dict[Split, int] = {}
    for split in SPLITS:
        records = opened.split(split)
        count[split] = len(records)
        before = len(bad)
        rows = spread(len(records), SAMPLE) or range(len(records))
        for row in track(rows, f"{split} images"):
            try:
                sides.append(min(records.load(row).size))
            except UNREADABLE as error:
                bad.append(f"{records.describe(row)} ({error})")
        shares.append((len(bad) - before) / len(rows))
    if not sides:
        raise UserError(f"none of {len(bad)} images can be read, such as {bad[0]}: name another data set")
    classes = list(opened.class_to_idx)
    return Survey(source, classes if len(classes) > 1 else [], count, int(median(sides)), bad, max(shares))


def _columns(table: Dataset, place: str) -> tuple[str, str | None]:
    """The columns of images and of labels, by their names or else by their kinds."""
    from datasets import ClassLabel
    from datasets import Image as ImageFeature

    kinds = table.features
    images = [name for name in kinds if isinstance(kinds[name], ImageFeature)]
    if "image" not in kinds and len(images) != 1:
        raise UserError(
            f"{place} has the columns {', '.join(kinds)}, and not one of images: write image_column by hand"
        )
    labels = [name for name in kinds if isinstance(kinds[name], ClassLabel)]
    named = next((name for name in LABEL_NAMES if name in kinds), None)
    if named is None and len(labels) > 1:
        raise UserError(
            f"{place} has the label columns {', '.join(labels)}: rename one to label, or take ARGS=--unlabelled"
        )
    return "image" if "image" in kinds else images[0], named or next(iter(labels), None)


def _share(count: int) -> float:
    return next(share for least, share in HELD_OUT if count >= least)
