"""The kinds of stages that a row is made of: what each is built upon, how it is run, and what shows that it is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from artifacts.run_files import MetricsFile
from polytoken import records


@dataclass(frozen=True)
class Kind:
    """One kind of stage.

    Args:
        command: Of `cli.py`.
        upon: What it is built upon: for each argument the kinds of which the latest stage before it in the row gives
            its directory.
        recipe: The recipe, where there is one only.
        preset_file: The file of the preset, where there is one only.
        seeds: Arguments that get the seed, besides `seed_everything`.
        files: What a finished run has besides `metrics.json`.
        section: The section of `metrics.json` that is written last; None for a stage that measures nothing.
        begun: What an unfinished run has; one of these patterns.
        options: None for a run of `cli.py`. Otherwise the stage trains nothing: it is the command of
            `experiments.measure`, has neither recipe nor preset, and overrides are these options, all numbers.
    """

    command: str = "fit"
    upon: dict[str, tuple[str, ...]] = field(default_factory=dict)
    recipe: str | None = None
    preset_file: str | None = None
    seeds: tuple[str, ...] = ("data.init_args.seed",)
    files: tuple[str, ...] = ()
    # A fit writes its own section first: without the other one it was stopped before its last validation.
    section: str | None = "validate"
    begun: tuple[str, ...] = ("checkpoints/last.ckpt",)
    options: tuple[str, ...] | None = None


# All that a stage can measure, by the names of `metrics.json`; `_raw` is of weights that are not averaged.
METRICS = (
    *(f"val/{name}{raw}" for name in ("psnr", "ssim") for raw in ("", "_raw")),
    *(f"val/{name}{raw}/*" for name in ("rfd", "rfid", "rsfid", "ris", "lpips") for raw in ("", "_raw")),
    *("val/psnr_painted", "val/judge_accuracy", "val/judge_accuracy_originals"),
    *("val/usage/*", "val/perplexity/*", "val/dead/*"),
    *("val/ks", "val/rmse_uniform", "val/entropy_ratio", "val/bins_hit"),
    *("val/cosine/*", "val/squared_cosine/*", "val/cknna/*", "val/cka/*", "val/silhouette/*", "val/ablation/*"),
    *("val/nll", "val/nll/*", "val/bits_per_image"),  # of a generator
    *("gfd/*", "gfid/*", "gsfid/*", "gis/*", "gkid/*", "gkd/*", "recognised/*", "precision/*", "recall/*"),  # samples
    *("probe/*", "ks", "rmse_uniform", "entropy_ratio"),  # of experiments.measure
)

STORE: dict[str, tuple[str, ...]] = {"data.init_args.store": ("tokens",)}

KINDS = {
    "tokenizer": Kind(),
    "tokens": Kind(
        command="predict",
        upon={"model.init_args.tokenizer_run": ("tokenizer",)},
        recipe="tokens",
        preset_file="tokens",
        files=("train/manifest.json", "validation/manifest.json"),
        section=None,
        begun=("*.partial", "train"),
    ),
    "stage1": Kind(upon=STORE, recipe="stage1", preset_file="generator"),
    "stage2": Kind(upon={**STORE, "model.init_args.init_from": ("stage1",)}, recipe="stage2", preset_file="generator"),
    "generator": Kind(upon=STORE, preset_file="generator"),  # from scratch
    "samples": Kind(  # sampled, then measured
        command="predict",
        upon={"model.init_args.generator_run": ("stage2", "generator")},
        recipe="sample",
        preset_file="sample",
        seeds=("data.init_args.seed", "model.init_args.seed"),
        files=("samples.npz",),
        section="evaluate",
        begun=("parts", "samples.npz"),
    ),
    "probe": Kind(command="probe", upon={"run": ("tokenizer",)}, seeds=(), begun=(), options=("max_train",)),
    "normal": Kind(command="normal", seeds=(), begun=(), options=("alpha",)),
}


def built_upon(kinds: Sequence[str]) -> dict[str, int | None]:
    """For each argument of the last of these stages, the place of the one it is built upon; None if that is missing."""
    *before, last = kinds
    return {
        argument: max((place for place, kind in enumerate(before) if kind in fitting), default=None)
        for argument, fitting in KINDS[last].upon.items()
    }


def progress(kind: Kind, directory: Path) -> str:
    """Whether a stage is done, unfinished or missing."""
    figures = kind.section is None or measured(kind, directory) is not None
    if figures and all((directory / file).exists() for file in kind.files):
        return "done"
    begun = any(True for pattern in kind.begun for _ in directory.glob(pattern))
    return "unfinished" if begun else "missing"


def measured(kind: Kind, directory: Path) -> dict[str, Any] | None:
    """What a stage has measured: the section of `metrics.json` that it writes last, or None."""
    if kind.section is None:
        return None
    sections: dict[str, Any] = {**(records.read_derived(directory / "metrics.json", MetricsFile) or {})}
    return sections.get(kind.section)
