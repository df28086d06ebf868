"""Real images and judge of a preset, read from its configuration files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser
from torch.utils.data import Subset

from artifacts.repository import PRESETS
from datamodules.dataset import ImageDataset, collate
from datamodules.images import ImageDataModule
from datamodules.loader import new_loader
from datamodules.sources.base import Split
from polytoken.errors import UserError

BATCH = 128


def image_data(config: Path, root: str | None = None) -> ImageDataModule:
    """Build the image data module of a configuration's section ``data``, optionally with another folder of images.

    Raises:
        UserError: if the file does not exist, or its data are not images.
    """
    if not config.is_file():
        raise UserError(f"there is no {config}, which names the images")
    section = _section(config, "data")
    if "class_path" not in section:
        raise UserError(f"{config} names no images in its section data: write it again, or name another run")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(ImageDataModule, "data")
    if root is not None:
        section["init_args"]["source"].setdefault("init_args", {})["root"] = root
    try:
        return parser.instantiate(parser.parse_object({"data": section})).data
    except (ArgumentError, ValueError) as error:
        raise UserError(f"{config}: {error}") from error


def real_images(data: ImageDataModule, split: Split, rows: Sequence[int] | None = None) -> Iterator[dict[str, Any]]:
    """Batches of real images as validation shows them to a tokenizer; of these rows, or of all."""
    images: Any = ImageDataset(data.source.split(split), data.evaluation_transform, split, 0, replace_unreadable=False)
    if rows is not None:
        images = Subset(images, rows)
    for batch in new_loader(images, None, BATCH, collate, data.num_workers):
        yield data.count_unreadable(batch)


def spread(count: int, wanted: int | None) -> list[int] | None:
    """At most ``wanted`` of ``count`` rows, evenly spread; None, which means all, if that is no restriction."""
    return None if wanted is None or wanted >= count else [row * count // wanted for row in range(wanted)]


def preset_of(run: Path) -> str:
    """Name of the preset of a run, from its configuration.

    Raises:
        UserError: if the configuration does not exist or names none.
    """
    config = run / "config.yaml"
    if not config.is_file():
        raise UserError(f"there is no {config}, which names the preset: name a run of cli.py")
    name = _section(config, "run").get("preset")
    if name is None:
        raise UserError(f"{config} names no run.preset")
    return str(name)


def _section(config: Path, name: str) -> dict[str, Any]:
    """A section of a configuration; an empty one if it is missing."""
    try:
        content = yaml.safe_load(config.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{config} is not readable YAML ({reason}): restore it, or name another run") from error
    section = (content.get(name) or {}) if isinstance(content, dict) else content
    if not isinstance(section, dict):
        raise UserError(f"{config} has no section {name} with keys and values: restore it, or name another run")
    return section


@dataclass(frozen=True)
class Preset:
    """Data of a preset.

    Args:
        name: its folder in configs/presets.
        data: its images.
    """

    name: str
    data: ImageDataModule

    @classmethod
    def load(cls, name: str, root: str | None = None) -> Preset:
        """Read the data of the tokenizer's configuration, optionally with another folder of images.

        Raises:
            UserError: if there is no such preset.
        """
        config = PRESETS / name / "tokenizer.yaml"
        if not config.exists():
            known = ", ".join(sorted(path.parent.name for path in PRESETS.glob("*/tokenizer.yaml")))
            raise UserError(f"there is no preset {name}: known are {known}")
        return cls(name, image_data(config, root))

    @property
    def has_judge(self) -> bool:
        """True for an embedded preset, which trains its own judge."""
        return (PRESETS / self.name / "judge.yaml").exists()

    def judge_file(self, runs: Path) -> Path:
        """File of the judge, which ``make teacher`` trains.

        Raises:
            UserError: if the preset has none.
        """
        if not self.has_judge:
            raise UserError(f"the preset {self.name} has no judge: measure it by inception")
        return runs / self.name / "teacher" / "judge.safetensors"

    def images(self, split: Split, at_most: int | None = None) -> Iterator[tuple[Any, Any]]:
        """Images (B, 3, H, W) in [-1, 1] and labels (B,) of a split, evenly spread if fewer are wanted."""
        for batch in real_images(self.data, split, spread(len(self.data.source.split(split)), at_most)):
            yield batch["image"], batch["label"]
