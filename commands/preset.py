"""Real images and networks of a preset, read from its configuration files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import Subset

from artifacts import yaml_files
from artifacts.repository import ADM_REFERENCE, PRESETS
from datamodules.dataset import ImageDataset, collate
from datamodules.images import ImageDataModule
from datamodules.loader import new_loader
from datamodules.sources.base import Split
from polytoken.building import build
from polytoken.errors import UserError
from polytoken.files import is_file_name
from polytoken.teachers.efficientnet import MEASURES

BATCH = 128
SOURCES = ("datamodules",)  # packages of data modules and sources
OWN_NETWORKS = {"judge": "judge", "stand_in": "teacher_mid"}  # extractors that a preset may train: their recipes


def image_data(config: Path, root: str | None = None, trust: Sequence[str] = ()) -> ImageDataModule:
    """Build the image data module of a configuration's section ``data``.

    Args:
        config: the file, which a run may have recorded.
        root: another folder of images.
        trust: packages besides the project's own whose classes it may name.

    Raises:
        UserError: if the file does not exist, names classes of other packages, or its data are not images.
    """
    if not config.is_file():
        raise UserError(f"there is no {config}, which names the images: restore it, or name a run of cli.py")
    section = _section(config, "data")
    if "class_path" not in section:
        raise UserError(f"{config} names no images in its section data: write it again, or name another run")
    if root is not None:
        section["init_args"]["source"].setdefault("init_args", {})["root"] = root
    return build(section, ImageDataModule, str(config), (*SOURCES, *trust))


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
        raise UserError(f"{config} names no run.preset: restore it, or name a run of cli.py")
    return str(name)


def metric_size(config: Path) -> int | None:
    """Pixels a side at which validation compares the images of a tokenizer's run; None compares them as they are."""
    return (_section(config, "model").get("init_args") or {}).get("metric_size")


def _section(config: Path, name: str) -> dict[str, Any]:
    """A section of a configuration; an empty one if it is missing."""
    try:
        content = yaml_files.read(config) or {}
    except UserError as error:
        raise UserError(f"{config} is not readable: {error}. Restore it, or name another run") from error
    section = (content.get(name) or {}) if isinstance(content, dict) else content
    if not isinstance(section, dict):
        raise UserError(f"{config} has no section {name} with keys and values: restore it, or name another run")
    return section


def own_network(preset: str) -> str | None:
    """The network that compares images of a preset by default: its judge, or EfficientNet-Lite2 if it trains stand-ins.

    None if the preset trains neither, and is compared with :func:`training_reference` by Inception.
    """
    networks = _networks(preset)
    if "judge" in networks:
        return "judge"
    return MEASURES if networks else None


def measured_reference(runs: Path, preset: str, split: Split, extractor: str) -> Path:
    """File of the statistics of a split that `make reference` writes."""
    return runs / preset / "reference" / f"{split}_{extractor}.npz"


def training_reference(preset: str, runs: Path = Path("runs")) -> Path:
    """Inception's statistics of training images that experiments compare with: ADM's for ImageNet, or the preset's own.

    Unlike the default of an evaluation, they are ADM's even where ImageNet was measured here: tables must compare.
    """
    return ADM_REFERENCE if preset == "imagenet" else measured_reference(runs, preset, "train", "inception")


def _networks(preset: str) -> list[str]:
    return [name for name, recipe in OWN_NETWORKS.items() if (PRESETS / preset / f"{recipe}.yaml").exists()]


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
        if not is_file_name(name) or not config.exists():
            known = ", ".join(sorted(path.parent.name for path in PRESETS.glob("*/tokenizer.yaml")))
            raise UserError(f"there is no preset {name}: known are {known}")
        return cls(name, image_data(config, root))

    @property
    def networks(self) -> list[str]:
        """Networks that the preset trains and that compare images, by their names as extractors."""
        return _networks(self.name)

    @property
    def own_network(self) -> str | None:
        """The network that compares images by default: see :func:`own_network`."""
        return own_network(self.name)

    def network_file(self, name: str, runs: Path) -> Path:
        """File of one of its networks, which ``make teacher`` trains."""
        return runs / self.name / "teacher" / f"{OWN_NETWORKS[name].removeprefix('teacher_')}.safetensors"

    def images(self, split: Split, at_most: int | None = None) -> Iterator[tuple[Any, Any]]:
        """Images (B, 3, H, W) in [-1, 1] and labels (B,) of a split, evenly spread if fewer are wanted."""
        for batch in real_images(self.data, split, spread(len(self.data.source.split(split)), at_most)):
            yield batch["image"], batch["label"]
