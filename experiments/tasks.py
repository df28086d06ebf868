"""Expansion of an experiment into tasks (a row with a seed) and runs (a stage with a seed)."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from copy import deepcopy
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from math import nan
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from artifacts import yaml_files
from artifacts.completion import completion
from artifacts.origin import made_again
from artifacts.repository import PRESETS, REPOSITORY
from experiments.specification import Experiment, Overrides, Row, Stage, short
from experiments.stages import KINDS, Kind, input_stages, measured, progress
from polytoken.files import write_text

ROOT = Path("runs/experiments")
PROGRAM = REPOSITORY / "cli.py"
EVALUATION = ("-m", "commands.evaluate")  # finds the judge where `make teacher` puts it
COMPARING = ("sweep", "curve")  # programs that measure samples
CLASSES = Path("weights/siglip2_large_classes.safetensors")  # for presets without a dual encoder


@dataclass(frozen=True)
class Run:
    """One stage with one seed.

    Its directory follows from the content of its configuration files. Equal stages of any rows and tables are one run,
    and an edited recipe gives another run instead of an old number under a new name.

    Args:
        stage: With all overrides applied.
        preset: Data and sizes.
        seed: Of weights, data and samples.
        root: Directory of all runs of experiments.
        digest: Of the configuration of the stage and of its inputs.
        inputs: Directory of another run for each argument that names one.
    """

    stage: Stage
    preset: str
    seed: int
    root: Path
    digest: str
    inputs: dict[str, Path] = field(default_factory=dict)

    @property
    def kind(self) -> Kind:
        """Kind of its stage."""
        return KINDS[self.stage.kind]

    @property
    def name(self) -> str:
        """Place below root and preset; `run.stage` of `cli.py`."""
        return f"{self.stage.kind}/{self.stage.recipe or self.stage.kind}/{self.digest}/seed_{self.seed}"

    @property
    def directory(self) -> Path:
        """Directory where `cli.py` puts the run."""
        return self.root / self.preset / self.name

    @property
    def overrides(self) -> Path:
        """File of the overrides: the command line cannot set a class to null."""
        return self.directory / "overrides.yaml"

    @property
    def log(self) -> Path:
        """Output of all its starts."""
        return self.directory / "log.txt"

    @property
    def state(self) -> str:
        """Done, unfinished or missing."""
        return progress(self.kind, self.directory)

    @property
    def outdated(self) -> str | None:
        """An input that was made again since this stage was made from it."""
        done = completion(self.directory)
        return made_again(done["origin"]) if done is not None and "origin" in done else None

    @property
    def reference(self) -> Path | None:
        """Statistics that its samples are compared with by Inception, for lack of a network of the preset's own."""
        from commands.preset import own_network, training_reference

        compares = self.kind.section == "evaluate" or self.stage.kind in COMPARING
        return training_reference(self.preset) if compares and own_network(self.preset) is None else None

    @property
    def classes(self) -> Path | None:
        """File of the class vectors that it reads, where the Makefile puts it; None for a stage without names."""
        if self.stage.kind != "zero_shot":
            return None
        if (PRESETS / self.preset / "teacher_dual.yaml").exists():
            return Path("runs") / self.preset / "teacher/classes.safetensors"
        return CLASSES

    def arguments(self, overrides: Path) -> list[str]:
        """Arguments of `cli.py`."""
        options: list[tuple[str, Any]] = [("config", file) for file in (*self.stage.configs(self.preset), overrides)]
        options += self.inputs.items()
        options += [(argument, self.seed) for argument in ("seed_everything", *self.kind.seeds)]
        options += [("run.root", self.root), ("run.preset", self.preset), ("run.stage", self.name)]
        options += [("trainer.enable_progress_bar", "false")]
        return [self.kind.command, *_options(options)]

    def commands(self) -> list[list[str]]:
        """The commands in their order; samples are measured after they are drawn."""
        if self.stage.is_program:
            given = {**self.inputs, **self.stage.overrides, "output": self.directory}
            given |= {"classes": self.classes} if self.classes else {}
            named = [(name.replace("_", "-"), value) for name, value in given.items()]
            return [[sys.executable, "-m", "experiments.programs", self.kind.command, *_options(named)]]
        commands = [[sys.executable, str(short(PROGRAM)), *self.arguments(self.overrides)]]
        if self.kind.section == "evaluate":
            options: list[tuple[str, Any]] = [("samples", self.directory / "samples.npz"), ("preset", self.preset)]
            options += [("reference", self.reference)] if self.reference else []
            commands.append([sys.executable, *EVALUATION, *_options(options)])
        return commands

    def write_overrides(self, path: Path) -> None:
        """Write the overrides as a config file."""
        write_text(path, yaml.safe_dump(nested(self.stage.overrides), sort_keys=False))

    def metrics(self) -> dict[str, float | None]:
        """Metrics of the validation at the end of a fit, or of the evaluation of samples; empty before that.

        Those of samples have a second name with their guidance, `guidance_1.5/gfd/judge`, which other samples of the
        row do not have.
        """
        section = measured(self.kind, self.directory) or {}
        if self.kind.section != "evaluate":
            return section.get("metrics", {})
        found = {name: metric["value"] for name, metric in _of_samples(section).items()}
        guidance = _sampler(section).get("guidance")
        if isinstance(guidance, int | float):  # one of each sub-code is a list
            found |= {f"guidance_{guidance:g}/{name}": value for name, value in found.items()}
        return found

    def origin(self) -> dict[str, Any]:
        """Provenance of its metrics: n, protocol, commit and machine; None for what `metrics.json` does not hold."""
        section = measured(self.kind, self.directory) or {}
        if self.kind.section == "evaluate":
            n = next((metric["n"] for metric in _of_samples(section).values()), None)
            protocol = _protocol(section)
        else:
            n = section.get("n")
            protocol = f"validation at step {section['global_step']}" if "global_step" in section else None
        return {"n": n, "protocol": protocol, "commit": section.get("commit"), "machine": section.get("machine")}


@dataclass(frozen=True)
class Task:
    """One row with one seed, and its runs in their order."""

    row: Row
    seed: int
    runs: list[Run]

    @property
    def missing(self) -> Run | None:
        """The first run that is not done."""
        return next((run for run in self.runs if run.state != "done"), None)


def expand(experiment: Experiment, seeds: int | None = None, root: Path = ROOT) -> list[Task]:
    """All rows with the first seed, then all with the next, so that a table is complete as early as possible.

    Args:
        experiment: At its preset.
        seeds: How many, from 0 on; None means those with a directory, at least one.
        root: Directory of all runs of experiments.
    """
    if seeds is None:
        begun = [seed for task in expand(experiment, 1, root) for run in task.runs for seed in _begun(run)]
        seeds = 1 + max(begun, default=0)
    return [
        Task(row, seed, runs_of(row, experiment.preset, seed, root)) for seed in range(seeds) for row in experiment.rows
    ]


def runs_of(row: Row, preset: str, seed: int, root: Path = ROOT) -> list[Run]:
    """The runs of a row, one a stage; the digest of a stage covers the stages that are its inputs, and no others."""
    runs: list[Run] = []
    for stage in row.stages:
        indices = input_stages([*(run.stage.kind for run in runs), stage.kind])
        inputs = {argument: runs[index] for argument, index in indices.items() if index is not None}
        configs = [yaml_files.read(path) for path in stage.configs(preset)]
        digests = {argument: run.digest for argument, run in inputs.items()} or None
        text = json.dumps([*configs, nested(stage.overrides), digests], sort_keys=True, default=str)
        digest = hashlib.sha256(text.encode()).hexdigest()[:10]
        directories = {argument: run.directory for argument, run in inputs.items()}
        runs.append(Run(stage, preset, seed, root, digest, directories))
    return runs


def nested(overrides: Overrides) -> dict[str, Any]:
    """Dotted keys as nested mappings; of two keys that contradict, the later counts."""
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


def mean_of(metrics: dict[str, float | None], name: str) -> float | None:
    """A metric, or the mean of all that match `val/usage/*`; NaN if one is not finite, None without any."""
    values = [value for key, value in metrics.items() if fnmatchcase(key, name)]
    return fmean(nan if value is None else value for value in values) if values else None


def _begun(run: Run) -> list[int]:
    """Seeds with a directory of this run; a copy with another name is none."""
    found = (re.fullmatch(r"seed_(\d+)", place.name) for place in run.directory.parent.glob("seed_*"))
    return [int(match[1]) for match in found if match]


def _options(pairs: list[tuple[str, Any]]) -> list[str]:
    return [text for name, value in pairs for text in (f"--{name}", str(value))]


def _of_samples(section: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return section.get("metrics", {}).get("samples", {})


def _sampler(evaluated: dict[str, Any]) -> dict[str, Any]:
    """Rules of the sampler."""
    return ((evaluated.get("samples") or {}).get("settings") or {}).get("sampler", {})


def _protocol(evaluated: dict[str, Any]) -> str | None:
    """Sampling settings, network and reference of a measurement, in words."""
    network, real = evaluated.get("extractor") or {}, evaluated.get("reference") or {}
    words = [f"{name} {value}" for name, value in _sampler(evaluated).items() if value is not None]
    words += [f"by {network['name']} {network['sha256'][:8]}"] if network.get("sha256") else []
    words += [f"to {real['reference_n']} {real['reference']}"] if real.get("reference_n") else []
    return ", ".join(words) or None
