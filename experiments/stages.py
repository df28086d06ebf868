"""Kinds of stages: their inputs, the command that runs them, and the files of a finished one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from artifacts.completion import completion
from artifacts.run_files import METRICS, MetricsFile
from polytoken import records
from polytoken.layout import CHECKPOINTS, LAST


@dataclass(frozen=True)
class Kind:
    """One kind of stage.

    Args:
        command: Subcommand of `cli.py`, or of `experiments.programs`.
        inputs: For each argument the kinds of stages that it may name. The latest such stage before this one in the
            row gives its directory.
        recipe: The recipe, for a kind that has only one.
        preset_file: The file of the preset, for a kind that has only one.
        seeds: Arguments that get the seed, besides `seed_everything`.
        section: The section of `metrics.json` with its metrics; None for a stage that measures nothing.
        begun: Patterns, one of which matches a file of an unfinished run.
        options: None for a run of `cli.py`. Otherwise the stage is a program that trains nothing: it has neither
            recipe nor preset, and its overrides are these options, all numbers.
    """

    command: str = "fit"
    inputs: dict[str, tuple[str, ...]] = field(default_factory=dict)
    recipe: str | None = None
    preset_file: str | None = None
    seeds: tuple[str, ...] = ("data.init_args.seed",)
    section: str | None = "validate"
    begun: tuple[str, ...] = (f"{CHECKPOINTS}/{LAST}",)
    options: tuple[str, ...] | None = None


STORE: dict[str, tuple[str, ...]] = {"data.init_args.store": ("tokens",)}
TOKENIZER: dict[str, tuple[str, ...]] = {"model.init_args.tokenizer_run": ("tokenizer",)}
GENERATOR: dict[str, tuple[str, ...]] = {"run": ("stage2", "generator")}

KINDS = {
    "tokenizer": Kind(),
    "tokens": Kind(
        command="predict",
        inputs=TOKENIZER,
        recipe="tokens",
        preset_file="tokens",
        section=None,
        begun=("*.partial", "train"),
    ),
    "stage1": Kind(inputs=STORE, recipe="stage1", preset_file="generator"),
    "stage2": Kind(
        inputs={**STORE, "model.init_args.init_from": ("stage1",)}, recipe="stage2", preset_file="generator"
    ),
    "generator": Kind(inputs=STORE, preset_file="generator"),  # from scratch
    "samples": Kind(  # sampled, then measured
        command="predict",
        inputs={"model.init_args.generator_run": ("stage2", "generator")},
        recipe="sample",
        preset_file="sample",
        seeds=("data.init_args.seed", "model.init_args.seed"),
        section="evaluate",
        begun=("parts", "samples.npz"),
    ),
    "caption_stage1": Kind(inputs=TOKENIZER, recipe="caption_stage1", preset_file="caption"),
    "caption_stage2": Kind(
        inputs={**TOKENIZER, "model.init_args.init_from": ("caption_stage1",)},
        recipe="caption_stage2",
        preset_file="caption",
    ),
    "layers": Kind(command="layers", inputs=GENERATOR, seeds=(), begun=(), options=("max_images", "k", "time")),
    "sweep": Kind(command="sweep", inputs=GENERATOR, seeds=(), begun=(), options=("num_images", "steps")),
    "curve": Kind(command="curve", inputs=GENERATOR, seeds=(), begun=(), options=("num_images", "guidance", "steps")),
    "probe": Kind(command="probe", inputs={"run": ("tokenizer",)}, seeds=(), begun=(), options=("max_train",)),
    "codes": Kind(
        command="codes",
        inputs={"run": ("tokenizer",)},
        seeds=(),
        begun=(),
        options=("alpha", "beta", "delta", "max_images"),
    ),
    "recovery": Kind(
        command="recovery",
        inputs={"run": ("tokenizer",)},
        seeds=(),
        begun=(),
        options=("factor", "steps", "learning_rate"),
    ),
    "zero_shot": Kind(command="zero_shot", inputs={"run": ("tokenizer",)}, seeds=(), begun=(), options=("max_images",)),
    "fidelity": Kind(command="fidelity", inputs={"run": ("tokenizer",)}, seeds=(), begun=(), options=("words",)),
    "dependency": Kind(command="dependency", inputs={"store": ("tokens",)}, seeds=(), begun=(), options=("groups",)),
    "normal": Kind(command="normal", seeds=(), begun=(), options=("alpha",)),
}


def input_stages(kinds: Sequence[str]) -> dict[str, int | None]:
    """For each input of the last of these stages the index of the stage that provides it, or None."""
    *before, last = kinds
    return {
        argument: max((index for index, kind in enumerate(before) if kind in fitting), default=None)
        for argument, fitting in KINDS[last].inputs.items()
    }


def progress(kind: Kind, directory: Path) -> str:
    """State of a stage: done, unfinished or missing."""
    if (completion(directory) if kind.section is None else measured(kind, directory)) is not None:
        return "done"
    is_begun = any(True for pattern in kind.begun for _ in directory.glob(pattern))
    return "unfinished" if is_begun else "missing"


def measured(kind: Kind, directory: Path) -> dict[str, Any] | None:
    """The section of `metrics.json` with the metrics of a finished stage; None for an unfinished one."""
    marker = completion(directory)
    if marker is None or kind.section is None:
        return None
    sections: dict[str, Any] = {**(records.read_derived(directory / METRICS, MetricsFile) or {})}
    section = sections.get(kind.section)
    # samples are marked when they are drawn; their evaluation names the file that it has measured
    if (
        section
        and kind.section == "evaluate"
        and section["samples"].get("sha256") != marker["files"].get("samples.npz")
    ):
        return None
    return section
