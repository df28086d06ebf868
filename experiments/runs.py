"""The runs of an experiment: where each lives, the command that makes it, and what it measured."""

from __future__ import annotations

import hashlib
import json
import sys
from copy import deepcopy
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from commands.runs import RunConfig
from commands.suggestions import REPOSITORY
from experiments.specification import Row, Stage, short

ROOT = Path("runs/experiments")
PROGRAM = REPOSITORY / "cli.py"


@dataclass(frozen=True)
class Run:
    """One stage with one seed.

    Its directory follows from what its files say, so equal stages of any rows and tables are one run, and an edited
    recipe is another run instead of an old number under a new name.
    """

    stage: Stage
    preset: str
    seed: int
    root: Path
    digest: str

    @property
    def name(self) -> str:
        """The run's place below root and preset."""
        return f"{self.stage.stage}/{self.stage.recipe}/{self.digest}/seed_{self.seed}"

    @property
    def directory(self) -> Path:
        """Where cli.py puts it."""
        return RunConfig(str(self.root), self.preset, self.name).directory

    @property
    def overrides(self) -> Path:
        """The file of its overrides: the command line cannot set a class to null."""
        return self.directory / "overrides.yaml"

    @property
    def log(self) -> Path:
        """What it printed, over all its starts."""
        return self.directory / "log.txt"

    def arguments(self, overrides: Path) -> list[str]:
        """What cli.py is called with."""
        configs = [*map(str, self.stage.configs(self.preset)), str(overrides)]
        return [
            "fit",
            *(argument for config in configs for argument in ("--config", config)),
            *("--seed_everything", str(self.seed), "--data.init_args.seed", str(self.seed)),
            *("--run.root", str(self.root), "--run.preset", self.preset, "--run.stage", self.name),
            *("--trainer.enable_progress_bar", "false"),
        ]

    def command(self) -> list[str]:
        """The whole command."""
        return [sys.executable, str(short(PROGRAM)), *self.arguments(self.overrides)]

    def write_overrides(self, path: Path) -> None:
        """Write the overrides as a config file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(nested(self.stage.overrides), sort_keys=False), encoding="utf-8")

    def metrics(self) -> dict[str, float | None] | None:
        """What the validation at the end of the fit measured; None if the run has not come so far."""
        section = self._measured()
        return section["metrics"] if section else None

    def images(self) -> int | None:
        """How many validation images that was, if `metrics.json` says so."""
        section = self._measured()
        return section.get("n") if section else None

    def state(self) -> str:
        """Done, unfinished or missing."""
        if self._measured():
            return "done"
        return "unfinished" if (self.directory / "checkpoints" / "last.ckpt").exists() else "missing"

    def _measured(self) -> dict[str, Any] | None:
        path = self.directory / "metrics.json"
        # A fit writes its own section first: without the other one it was stopped before its last validation.
        return json.loads(path.read_text(encoding="utf-8")).get("validate") if path.exists() else None


def runs_of(row: Row, preset: str, seed: int, root: Path = ROOT) -> list[Run]:
    """The runs of a row, one a stage; the digest of a stage covers those before it."""
    runs: list[Run] = []
    for stage in row.stages:
        files = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in stage.configs(preset)]
        before = runs[-1].digest if runs else None
        text = json.dumps([*files, nested(stage.overrides), before], sort_keys=True, default=str)
        runs.append(Run(stage, preset, seed, root, hashlib.sha256(text.encode()).hexdigest()[:10]))
    return runs


def nested(overrides: dict[str, Any]) -> dict[str, Any]:
    """Dotted keys as nested mappings; of two keys that contradict, the later one counts."""
    tree: dict[str, Any] = {}
    for key, value in overrides.items():
        *parents, last = key.split(".")
        node = tree
        for parent in parents:
            if not isinstance(node.get(parent), dict):
                node[parent] = {}
            node = node[parent]
        node[last] = deepcopy(value)  # a later key may go into it
    return tree


def figure(metrics: dict[str, float | None], name: str) -> float | None:
    """A metric by name, or the mean of those that match `val/usage/*`; None if one is missing or not finite."""
    values = [value for key, value in metrics.items() if fnmatchcase(key, name)]
    numbers = [value for value in values if value is not None]
    return fmean(numbers) if numbers and len(numbers) == len(values) else None
