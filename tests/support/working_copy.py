"""Working copies of this repository, with recipes that take seconds."""

import shutil
from pathlib import Path
from typing import Any

import yaml

from tests.support.commands import REPOSITORY
from tests.support.recipes import CONFIGS, PRESETS


def link_repository(directory: Path) -> Path:
    """A directory to run make in: links to the code, copies of the configs, no runs."""
    directory.mkdir(parents=True)
    for path in REPOSITORY.iterdir():
        if path.name not in ("configs", "runs", ".git"):
            (directory / path.name).symlink_to(path)
    copy_configs(directory)
    return directory


def copy_configs(directory: Path) -> None:
    """Copy the configs, with no preset that `make preset` wrote in this working tree."""

    def own(folder: str, names: list[str]) -> set[str]:
        return {*names} - {*PRESETS} if Path(folder) == CONFIGS / "presets" else set()

    shutil.copytree(CONFIGS, directory / "configs", ignore=own)


def change(file: Path, changes: dict[str, Any]) -> None:
    """Lay changes over a config file."""
    config = yaml.safe_load(file.read_text()) or {}
    lay_over(config, changes)
    file.write_text(yaml.safe_dump(config))


def lay_over(config: dict[str, Any], changes: dict[str, Any]) -> None:
    """Set the keys of `changes` in `config`, section by section."""
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(config.get(key), dict):
            lay_over(config[key], value)
        else:
            config[key] = value
