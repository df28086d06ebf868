"""The card at the top of the page: the best samples, their tokenizer, five numbers, time and hardware."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from artifacts.run_files import Evaluation, ImageMetric
from artifacts.timing import read_timing, training_seconds
from commands.metric_names import DOWN, UP, kind_of, name_of
from commands.report import runs
from commands.report.content import Card, Number, Picture
from commands.report.stages import sample_settings
from polytoken.text import duration

NUMBERS = 5
DISTANCES = ("fid", "fd")
OF_SAMPLES = {  # kind: title, format, unit, arrow
    "fid": ("gFID of samples", "{:.2f}", "", DOWN),
    "fd": ("Fréchet distance of samples", "{:.3g}", "", DOWN),
    "recognised": ("Samples recognised as their class", "{:.1f}", "%", UP),
    "is": ("Score of samples", "{:.1f}", "", UP),
}
OF_TOKENIZER = ("val/psnr", "val/rfid/inception", "val/rfd/judge", "val/ssim", "val/judge_accuracy")
PICTURES = {  # short texts, unlike those further down
    "grid.png": "Samples of {}, a row for each class",
    "reconstructions.png": "Validation images (odd rows) and their reconstructions (even rows) by {}",
}
OF_REFERENCES = {"grid.png": "Samples of {}, a row for each reference"}


def card(directory: Path) -> Card | None:
    """The card of the samples with the smallest distance, or of the tokenizer with the highest PSNR; None for neither.

    Args:
        directory: the preset's runs.
    """
    samples = min((file.parent for file in (directory / "samples").glob("*/samples.json")), key=_distance, default=None)
    settings = sample_settings(samples) if samples else None
    tokenizers = [path for path in sorted((directory / "tokenizer").glob("*")) if path.is_dir()]
    tokenizer = max(tokenizers, key=_psnr, default=None)
    generator = None
    if samples is not None and settings is not None:
        generator = directory.joinpath(*Path(settings["generator"]["run"]).parts[-2:])
        own = Path(settings["tokenizer"]["run"]) if "tokenizer" in settings else generator  # older samples name none
        tokenizer = next((path for path in tokenizers if path.name == own.name), None)
    if tokenizer is None and generator is None:
        return None
    chosen = [path for path in (samples, tokenizer) if path is not None]
    found = Card(" → ".join(f"{path.parent.name}/{path.name}" for path in (tokenizer, generator) if path is not None))
    found.pictures = [picture for path in chosen for picture in _first_picture(path)]
    found.numbers = [*_of_samples(samples), *_of_tokenizer(tokenizer)][:NUMBERS]
    found.facts = list(_facts(directory, chosen))
    return found


def _first_picture(path: Path) -> Iterator[Picture]:
    """Samples or reconstructions."""
    texts = PICTURES | (OF_REFERENCES if runs.around_references(path) else {})
    for picture in runs.pictures(path):
        if picture.path is not None and (text := texts.get(picture.path.name)):
            yield replace(picture, text=text.format(path.name))
            return


def _of_samples(path: Path | None) -> Iterator[Number]:
    """The distance first, then the share recognised or the score."""
    metrics = _evaluated(path)
    kinds = {kind_of(name): (name, metric) for name, metric in metrics.items() if metric["value"] is not None}
    chosen = [kind for kind in OF_SAMPLES if kind in kinds][:2]
    for kind in chosen:
        name, metric = kinds[kind]
        title, form, unit, better = OF_SAMPLES[kind]
        value = (metric["value"] or 0.0) * (100 if unit == "%" else 1)
        network = name.partition("/")[2]
        yield Number(title, form.format(value), unit, better, f"{metric['n']:,} images, by {network}")


def _of_tokenizer(path: Path | None) -> Iterator[Number]:
    """PSNR and distance, use of the codes, and what else there is."""
    measured = _validated(path)
    found = [_number(metric, value) for metric in OF_TOKENIZER if (value := measured.get(metric)) is not None]
    used = [value for name, value in measured.items() if re.fullmatch(r"val/usage/\d+", name) and value is not None]
    if used:
        found.insert(2, Number("Codes in use", f"{100 * fmean(used):.0f}", "%", UP, _of(used)))
    yield from found


def _of(used: list[float]) -> str:
    return "one codebook" if len(used) == 1 else f"mean of {len(used)} codebooks"


def _number(metric: str, value: float) -> Number:
    name = name_of(metric)
    text = name.text(value)
    unit = "%" if text.endswith("%") else name.unit
    return Number(f"{name.title[0].upper()}{name.title[1:]}", text.rstrip("%"), unit, name.better, "reconstructions")


def _facts(directory: Path, chosen: list[Path]) -> Iterator[tuple[str, str]]:
    """Time of all runs together, and the machines that measured the chosen ones."""
    seconds = {
        f"{file.parent.parent.name}/{file.parent.name}": training_seconds(read_timing(file.parent))
        for file in sorted(directory.glob("*/*/timing.json"))
    }
    seconds = {name: taken for name, taken in seconds.items() if taken}
    if seconds:
        parts = ", ".join(f"{name} {duration(taken)}" for name, taken in seconds.items())
        yield "training time of all runs", f"{duration(sum(seconds.values()))} ({parts})"
    sections = [section for path in chosen for section in runs.metrics_of(path).values()]
    machines = dict.fromkeys(str(one["machine"]) for one in sections if isinstance(one, dict) and one.get("machine"))
    if machines:
        yield "hardware", "; ".join(machines)


def _evaluated(path: Path | None) -> dict[str, ImageMetric]:
    evaluated: Evaluation | None = runs.metrics_of(path).get("evaluate") if path else None
    return evaluated["metrics"].get("samples", {}) if evaluated else {}


def _validated(path: Path | None) -> dict[str, float | None]:
    sections = runs.metrics_of(path) if path else {}
    section = sections.get("validate") or sections.get("fit")
    return section["metrics"] if section else {}


def _distance(path: Path) -> float:
    values = [metric["value"] for name, metric in _evaluated(path).items() if kind_of(name) in DISTANCES]
    return min((value for value in values if value is not None), default=float("inf"))


def _psnr(path: Path) -> float:
    value = _validated(path).get("val/psnr")
    return -1.0 if value is None else value
