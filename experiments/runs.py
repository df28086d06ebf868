"""The runs of an experiment: where each lives, the command that makes it, and what it measured."""

from __future__ import annotations

import hashlib
import json
import sys
from copy import deepcopy
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from math import nan
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from artifacts.repository import CONFIGS, REPOSITORY
from commands.cli.runs import RunConfig
from experiments import files
from experiments.specification import Row, Stage, short
from experiments.stages import KINDS, Kind, built_upon, measured, progress

ROOT = Path("runs/experiments")
PROGRAM = REPOSITORY / "cli.py"
EVALUATION = ("-m", "commands.evaluate")  # finds the judge where `make teacher` puts it
MEASURE = ("-m", "experiments.measure")
REFERENCE = Path("weights/VIRTUAL_imagenet256_labeled.npz")  # ADM's, for presets without a judge


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
    upon: dict[str, Path] = field(default_factory=dict)  # argument: directory of the stage it is built upon

    @property
    def kind(self) -> Kind:
        """What its stage is like."""
        return KINDS[self.stage.stage]

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
        given = {
            **{argument: str(directory) for argument, directory in self.upon.items()},
            **{argument: str(self.seed) for argument in ("seed_everything", *self.kind.seeds)},
            **{"run.root": str(self.root), "run.preset": self.preset, "run.stage": self.name},
            "trainer.enable_progress_bar": "false",
        }
        return [
            self.kind.command,
            *(argument for config in configs for argument in ("--config", config)),
            *(part for argument, value in given.items() for part in (f"--{argument}", value)),
        ]

    def commands(self) -> list[list[str]]:
        """The whole commands, in their order: samples are measured once they are there."""
        if self.kind.options is not None:
            given = {**self.upon, **self.stage.overrides, "output": self.directory}
            options = (part for name, value in given.items() for part in (f"--{name.replace('_', '-')}", str(value)))
            return [[sys.executable, *MEASURE, self.kind.command, *options]]
        commands = [[sys.executable, str(short(PROGRAM)), *self.arguments(self.overrides)]]
        if self.kind.section == "evaluate":
            samples = str(self.directory / "samples.npz")
            commands.append([sys.executable, *EVALUATION, "--samples", samples, "--preset", self.preset])
            commands[-1] += ["--reference", str(REFERENCE)] if self.needs_reference else []
        return commands

    @property
    def needs_reference(self) -> bool:
        """Whether it measures samples by Inception, for want of a judge."""
        judge = CONFIGS / "presets" / self.preset / "judge.yaml"
        return self.kind.section == "evaluate" and not judge.exists()

    def write_overrides(self, path: Path) -> None:
        """Write the overrides as a config file."""
        files.write(path, yaml.safe_dump(nested(self.stage.overrides), sort_keys=False))

    def metrics(self) -> dict[str, float | None] | None:
        """What the validation at the end of a fit measured, or the evaluation of samples; None before that."""
        section = self._measured()
        if section is None:
            return None
        if self.kind.section == "validate":
            return section["metrics"]
        return {name: figure["value"] for name, figure in section["figures"]["samples"].items()}

    def origin(self) -> dict[str, Any]:
        """What stands beside its figures: n, protocol, commit and machine; None is what `metrics.json` does not say."""
        section = self._measured() or {}
        if self.kind.section == "evaluate":
            n = next((figure["n"] for figure in section.get("figures", {}).get("samples", {}).values()), None)
            protocol = _compared(section)
        else:
            n = section.get("n")
            protocol = f"validation at step {section['global_step']}" if "global_step" in section else None
        return {"n": n, "protocol": protocol, "commit": section.get("commit"), "machine": section.get("machine")}

    def state(self) -> str:
        """Done, unfinished or missing."""
        return progress(self.kind, self.directory)

    def _measured(self) -> dict[str, Any] | None:
        return measured(self.kind, self.directory)


def runs_of(row: Row, preset: str, seed: int, root: Path = ROOT) -> list[Run]:
    """The runs of a row, one a stage; the digest of a stage covers the stages it is built upon, and no others."""
    runs: list[Run] = []
    for stage in row.stages:
        places = built_upon([*(run.stage.stage for run in runs), stage.stage])
        upon = {argument: runs[place] for argument, place in places.items() if place is not None}
        said = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in stage.configs(preset)]
        before = {argument: run.digest for argument, run in upon.items()} or None
        text = json.dumps([*said, nested(stage.overrides), before], sort_keys=True, default=str)
        digest = hashlib.sha256(text.encode()).hexdigest()[:10]
        directories = {argument: run.directory for argument, run in upon.items()}
        runs.append(Run(stage, preset, seed, root, digest, directories))
    return runs


def _compared(evaluated: dict[str, Any]) -> str | None:
    """How samples were drawn, by which network they were measured and with what they were compared, in words."""
    network, real = evaluated.get("extractor") or {}, evaluated.get("reference") or {}
    settings = (evaluated.get("samples") or {}).get("settings") or {}
    words = [f"{name} {value}" for name, value in settings.get("sampler", {}).items() if value is not None]
    words += [f"by {network['name']} {network['sha256'][:8]}"] if network.get("sha256") else []
    words += [f"to {real['reference_n']} {real['reference']}"] if real.get("reference_n") else []
    return ", ".join(words) or None


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
    """A metric by name, or the mean of all that match `val/usage/*`; NaN if one is not finite, None without any."""
    values = [value for key, value in metrics.items() if fnmatchcase(key, name)]
    return fmean(nan if value is None else value for value in values) if values else None
