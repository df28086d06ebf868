"""The table of docs/experiments.md lists every experiment with its presets."""

import re

from artifacts import yaml_files
from experiments.specification import DIRECTORY, names
from tests.support.commands import REPOSITORY


def test_every_experiment_is_listed_with_its_presets() -> None:
    page = (REPOSITORY / "docs/experiments.md").read_text(encoding="utf-8")
    listed: dict[str, list[str]] = {}
    for cells, presets in re.findall(r"^\| (`\w+/\w+`(?:, `\w+/\w+`)*) \| ([\w, ]+) \|", page, re.M):
        listed |= dict.fromkeys(re.findall(r"`(.+?)`", cells), presets.split(", "))
    assert listed == {name: yaml_files.read(DIRECTORY / f"{name}.yaml")["presets"] for name in names()}
