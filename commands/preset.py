"""The real images that figures are compared with, read from the configuration of a preset or of a run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentError, ArgumentParser
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from artifacts.repository import PRESETS
from datamodules.dataset import ImageDataset, collate
from datamodules.images import ImageDataModule
from datamodules.sources.base import Split
from polytoken.classifier import SmallClassifier
from polytoken.errors import UserError
from polytoken.metrics.judge import Judge

BATCH = 128
LABELLED = tuple[Tensor, "Tensor | None"]  # images (B, 3, H, W) in [-1, 1], labels (B,)


def image_data(config: Path, root: str | None = None) -> ImageDataModule:
    """The images that a configuration reads, built from its section ``data``; in another folder if one is given.

    Raises:
        UserError: if there is no such file, or its data are no images.
    """
    if not config.is_file():
        raise UserError(f"there is no {config}, which says where the images are")
    section = (yaml.safe_load(config.read_text(encoding="utf-8")) or {}).get("data")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(ImageDataModule, "data")
    if root is not None:
        section["init_args"]["source"].setdefault("init_args", {})["root"] = root
    try:
        return parser.instantiate(parser.parse_object({"data": section})).data
    except (ArgumentError, ValueError) as error:
        raise UserError(f"{config}: {error}") from error


def real_images(
    data: ImageDataModule, split: Split, at_most: int | None = None, batch_size: int = BATCH
) -> Iterator[LABELLED]:
    """Real images as they are fed to a tokenizer in validation; evenly chosen if fewer are wanted."""
    images: Any = ImageDataset(data.source.split(split), data.evaluation_transform, split, 0, replace_unreadable=False)
    if at_most is not None and at_most < len(images):
        images = Subset(images, [row * len(images) // at_most for row in range(at_most)])
    for batch in DataLoader(images, batch_size, collate_fn=collate, num_workers=data.num_workers):
        yield batch["image"], batch["label"]


@dataclass(frozen=True)
class Preset:
    """The real images of a preset.

    Raises (in :meth:`load`):
        UserError: if there is no such preset.
    """

    name: str
    data: ImageDataModule

    @classmethod
    def load(cls, name: str, root: str | None = None) -> Preset:
        """Read the preset's data from its tokenizer's configuration; its images from another folder if one is given."""
        config = PRESETS / name / "tokenizer.yaml"
        if not config.exists():
            known = ", ".join(sorted(path.parent.name for path in PRESETS.glob("*/tokenizer.yaml")))
            raise UserError(f"there is no preset {name}: known are {known}")
        return cls(name, image_data(config, root))

    @property
    def has_judge(self) -> bool:
        """Whether figures lean on a judge of its own, as those of embedded presets do."""
        return (PRESETS / self.name / "judge.yaml").exists()

    def judge(self, runs: Path, device: torch.device) -> Judge:
        """Its judge, which ``make teacher`` trains.

        Raises:
            FileNotFoundError: if it was not trained yet.
            UserError: if the preset has none.
        """
        if not self.has_judge:
            raise UserError(f"the preset {self.name} has no judge: its figures lean on Inception")
        path = runs / self.name / "teacher" / "judge.safetensors"
        return Judge(SmallClassifier.load(path).to(device), path)

    def real(self, split: Split, at_most: int | None = None) -> Iterator[LABELLED]:
        """Real images as they are fed to a tokenizer in validation; evenly chosen if fewer are wanted."""
        return real_images(self.data, split, at_most)
