"""One run: its settings, sizes, times, metrics and pictures."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from artifacts import yaml_files
from artifacts.results import Table
from artifacts.run_files import METRICS, MetricsFile, Samples
from artifacts.timing import Timing, images_per_second, read_timing, training_seconds
from artifacts.token_manifest import MANIFEST
from commands import tables
from commands.image_sets import table_of
from commands.metric_names import GROUPS, name_of, order
from commands.processes import global_batch
from commands.report.content import Entry, Facts, Picture
from commands.report.drawing import curves
from polytoken import records
from polytoken.errors import UserError
from polytoken.generators.record import Lineage, run_name
from polytoken.specs import TokenSpec
from polytoken.text import duration, memory

log = logging.getLogger(__name__)

PICTURES = {
    "reconstructions.png": "Validation images (odd rows) and their reconstructions (even rows)",
    "grid.png": "Class-conditional samples (row label = class)",
    "scales.png": "Images decoded from the first scales of their codes",
    "subspaces.png": "Images decoded without one subspace, and from one alone",
    "usage.png": "How often the codes of each sub-codebook are used",
    "affinity.png": "Similarity of the subspaces to one another and to teachers",
    "components.png": "Three principal components of the features of a patch, as a colour",
    "code_map.png": "Codes of each subspace, coloured by class",
    "fidelity_text.png": "Words and their reconstructions, with what an OCR network reads",
    "fidelity_faces.png": "Faces and their reconstructions",
    "dependency.png": "Mutual information of codes",
    "sweep.png": "Distance and score over the guidance",
    "layers.png": "Blocks of the generator against its output and a teacher",
    "generated_layers.png": "Blocks of the generator on generated tokens",
    "curve.png": "Distance over training FLOPs",
}
OF_REFERENCES = {"grid.png": "Samples around references (a row for each reference, column label = class)"}


class Stored(TypedDict):
    """Part of a token store's manifest that the report shows."""

    spec: TokenSpec | None
    tokenizer_fingerprint: NotRequired[str]


def read(path: Path, tokens: Path) -> Entry:
    """The run in a directory, with its curves and pictures; see :func:`measured`."""
    entry = measured(path, tokens)
    entry.curves = list(curves(path))
    entry.pictures = [*pictures(path), *pictures(tokens)]
    return entry


def measured(path: Path, tokens: Path, step: int | None = None) -> Entry:
    """Facts, metrics and tables of the run in a directory.

    Args:
        path: its directory.
        tokens: directory of the token stores that were written by it, if it is a tokenizer.
        step: of the weights that are described; None is that of the metrics.
    """
    entry = Entry(path.name)
    if (path / "config.yaml").is_file():
        entry.config = path / "config.yaml"
        entry.facts = _settings(entry.config)
    sections = metrics_of(path)
    validated: dict[str, Any] = {**(sections.get("validate") or sections.get("fit") or {})}
    entry.metrics = {
        **{name: value for name, value in _logged(sections, "fit") if name.startswith("train/")},
        **dict(_logged(sections, "test")),
        **validated.get("metrics", {}),
    }
    entry.metrics = {name: value for name, value in entry.metrics.items() if not name.startswith("lr-")}
    stored = _stored(tokens)
    entry.facts += [*times(read_timing(path)), *_codes(stored)]
    for word, key in (("step measured", "global_step"), ("images measured", "n")):
        entry.facts += [(word, f"{validated[key]:,}")] if validated.get(key) is not None else []
    measured_at = validated.get("global_step")
    for word, command in (("step of the training metrics", "fit"), ("step of the test", "test")):
        at = sections.get(command, {}).get("global_step")
        entry.facts += [(word, f"{at:,}")] if at not in (None, measured_at) else []
    lineage = records.read_derived(path / "lineage.json", Lineage)
    if lineage and lineage.init_from:
        start = lineage.init_from
        entry.facts.append(("initial weights", f"{run_name(start.path)}, step {start.step:,}"))
    entry.facts += provenance(validated)
    step = measured_at if step is None else step
    compared = [
        table
        for network, found in sections.get("reconstruction", {}).items()
        if (shown := table_of(found, f"Reconstructions measured by {network}"))
        for table in tables.at_step(step, found["samples"].get("settings"), [shown])
    ]
    own = tables.measured(path, step)
    codes = tables.dependency(tokens, stored.get("tokenizer_fingerprint") if stored else None)
    entry.tables = [*compared, *own, *codes]
    return entry


def metrics_of(path: Path) -> MetricsFile:
    """The content of `metrics.json`, without an evaluation of samples that others have replaced since."""
    sections = records.read_derived(path / METRICS, MetricsFile) or {}
    if (evaluated := sections.get("evaluate")) and (samples := _samples(path)):
        digests = {samples.get("sha256"), evaluated["samples"].get("sha256")} - {None}
        if len(digests) > 1:
            del sections["evaluate"]
    return sections


def around_references(path: Path) -> bool:
    """True if a directory holds samples of :class:`callbacks.ConditionalWriter`, whose grid differs."""
    samples = _samples(path)
    return samples is not None and "references" in samples["settings"]


def _samples(path: Path) -> Samples | None:
    return records.read_derived(path / "samples.json", Samples)


def compared(entries: list[Entry]) -> tuple[list[Table], list[Table]]:
    """Metrics of all runs of a stage, a table for each group; and the details, which are folded."""
    entries = [entry for entry in entries if entry.metrics]
    metrics = sorted({metric for entry in entries for metric in entry.metrics}, key=order)
    names = {metric: name_of(metric) for metric in metrics}

    def table(caption: str, kept: list[str]) -> list[Table]:
        rows = [
            [names[metric].head, *(names[metric].text(entry.metrics.get(metric)) for entry in entries)]
            for metric in kept
        ]
        return [Table([caption, *(entry.name for entry in entries)], rows)] if rows else []

    shown = [
        table(group, [metric for metric in metrics if names[metric].group == group and not names[metric].detail])
        for group in GROUPS
    ]
    return sum(shown, []), table("Details", [metric for metric in metrics if names[metric].detail])


def times(timing: Timing) -> Iterator[tuple[str, str]]:
    """Parameters, time, speed and memory of a run."""
    sizes = [f"{name} {count:,}" for name, count in timing.get("parameters", {}).items() if count]
    if sizes:
        yield "trainable parameters", ", ".join(sizes)
    if sessions := timing.get("fit"):
        again = f" in {len(sessions)} sessions" if len(sessions) > 1 else ""
        yield "training time", f"{duration(training_seconds(timing))}{again}"
        yield "peak memory", memory(max(session["memory_bytes"] for session in sessions))
    if speed := images_per_second(timing):
        yield "speed", f"{speed:,.3g} images/s"


def provenance(measured: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Versions, machine and commit."""
    if measured.get("versions"):
        yield "versions", ", ".join(f"{name} {version}" for name, version in measured["versions"].items())
    if measured.get("machine"):
        yield "machine", measured["machine"]
    if measured.get("commit"):
        yield "commit", short(measured["commit"])


def short(commit: str) -> str:
    """Twelve digits of a commit, and whether files were changed."""
    digits, _, changed = commit.partition("-")
    return digits[:12] + (f"-{changed}" if changed else "")


def pictures(path: Path) -> Iterator[Picture]:
    """The pictures of a run, in the order above."""
    for name, text in (PICTURES | (OF_REFERENCES if around_references(path) else {})).items():
        if (file := path / name).is_file():
            yield Picture("image/png", file.read_bytes(), f"{text} ({path.parent.name}/{path.name})", file)


def _logged(sections: MetricsFile, command: str) -> Iterator[tuple[str, float | None]]:
    section: Any = sections.get(command) or {}
    yield from section.get("metrics", {}).items()


def _settings(file: Path) -> Facts:
    """The most important settings of a configuration; none, and a warning, if it is broken."""
    try:
        config = yaml_files.read(file) or {}
        trainer, model = (config.get(name) or {} for name in ("trainer", "model"))
        parts = model.get("init_args") or {}
        part = next((parts[name] for name in ("tokenizer", "generator") if isinstance(parts.get(name), dict)), model)
        settings = {
            "model": str(part.get("class_path", "")).rpartition(".")[2] or None,
            "steps": trainer.get("max_steps"),
            "global batch": global_batch(config),
            "precision": trainer.get("precision"),
            "seed": config.get("seed_everything"),
        }
    except (UserError, AttributeError) as error:  # AttributeError: a section is no mapping
        log.warning("%s is broken, and its settings are left out: %s", file, error)
        return []
    return [(name, str(value)) for name, value in settings.items() if value is not None]


def _stored(tokens: Path) -> Stored | None:
    """The manifest of the first store that there is; the splits are written together."""
    found = (records.read_derived(tokens / split / MANIFEST, Stored) for split in ("train", "validation"))
    return next(filter(None, found), None)


def _codes(stored: Stored | None) -> Iterator[tuple[str, str]]:
    """Size of the codes of an image, from the stored ones."""
    if stored and (spec := stored["spec"]):
        sizes = " · ".join(f"{size:,}" for size in spec.codebook_sizes)
        yield "codes of an image", f"{spec.num_positions * spec.num_sub_codes:,} ({spec.num_positions:,} positions)"
        yield "bits of an image", f"{spec.bits_per_image:,.0f}"
        yield "codebook sizes", sizes
