"""Runs of a preset, stage by stage, and their samples: settings, metrics and pictures."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from artifacts import yaml_files
from artifacts.results import Table
from artifacts.run_files import (
    METRICS,
    PROBES,
    ZERO_SHOT,
    ImageMetric,
    MetricsFile,
    Probes,
    Samples,
    SampleSettings,
    Sweep,
    ZeroShotResult,
)
from commands.report.content import Entry, Picture, Section, number
from commands.report.drawing import curves
from polytoken import records
from polytoken.errors import UserError
from polytoken.generators.record import Lineage
from polytoken.metrics.image_metrics import kind_of

log = logging.getLogger(__name__)

STAGES = {  # directory below runs/<preset>, which is the make target too: heading and text
    "teacher": ("Judge and teachers", "Small networks in place of CLIP, DINOv2 and Inception."),
    "tokenizer": ("Tokenizers", "Images to codes and back."),
    "stage1": ("Generators, stage 1", "One code a patch: global structure."),
    "stage2": ("Generators, stage 2", "All codes of a patch: local detail."),
}
PICTURES = {
    "reconstructions.png": "Validation images over their reconstructions",
    "grid.png": "Samples; the class is at the left of its row",
    "usage.png": "How often the codes of each sub-codebook are used",
    "affinity.png": "Similarity of the subspaces to one another and to teachers",
    "subspaces.png": "Images decoded without one subspace, and from one alone",
    "components.png": "Three principal components of the features of a patch, as a colour",
    "scales.png": "Images decoded from the first scales of their codes",
    "code_map.png": "Codes of each subspace, coloured by class",
    "sweep.png": "Distance and score over the guidance",
    "layers.png": "Blocks of the generator against its output and a teacher",
    "curve.png": "Distance over training FLOPs",
}
SETS = {
    "samples": "samples",
    "reconstructions": "reconstructions of the validation images",
    "validation": "real validation images",
    "train": "real training images",
}
FILES = ("config.yaml", METRICS)  # a directory with one of these holds a run


def sections(directory: Path, preset: str) -> Iterator[Section]:
    """The curriculum's stages, followed by those of other generators."""
    others = {path.name for path in directory.iterdir() if path.is_dir()} - {*STAGES, "tokens", "samples"}
    for key in (*STAGES, *sorted(others)):
        section = Section(key, *STAGES.get(key, (f"Runs in {key}", "")))
        runs = [path for path in sorted((directory / key).glob("*")) if path.is_dir()]
        section.entries = [_run(path) for path in runs if any((path / file).exists() for file in FILES)]
        measured = [entry for entry in section.entries if entry.metrics]
        names = sorted({name for entry in measured for name in entry.metrics})
        if names:
            rows = [[name, *(number(entry.metrics.get(name)) for entry in measured)] for name in names]
            section.table = Table(["metric", *(entry.name for entry in measured)], rows)
        if not section.entries:
            section.missing = [f"make {key} PRESET={preset}"]
        if section.entries or key in STAGES:
            yield section


def samples(directory: Path, preset: str) -> Section:
    """Samples of the generators, and their evaluation."""
    section = Section("samples", "Samples and their evaluation", "Images of the generators, measured by the judge.")
    rows = []
    for path in sorted(record.parent for record in directory.glob("*/samples.json")):
        if (settings := _sample_settings(path / "samples.json")) is None:
            continue
        entry = Entry(path.name, pictures=list(_pictures(path)))
        entry.facts = [
            ("images", f"{settings['num_images']:,}, classes {settings['classes']}"),
            ("generator", f"{settings['generator']['run']}, step {settings['generator']['step']:,}"),
            ("sampler", ", ".join(f"{name} {value}" for name, value in settings["sampler"].items())),
            ("seed", str(settings["seed"])),
        ]
        section.entries.append(entry)
        evaluated = _metrics(path).get("evaluate")
        if evaluated is None:
            entry.facts.append(("evaluation", f"not done yet: make evaluate PRESET={preset}"))
            continue
        entry.facts += [("compared with", evaluated["reference"]["reference"]), *_provenance(evaluated)]
        entry.facts += [("note", note) for note in evaluated["notes"]]
        sets = {name: evaluated["metrics"][name] for name in SETS if name in evaluated["metrics"]}
        rows += [[path.name, SETS[name], *_evaluated(metrics)] for name, metrics in sets.items()]
    if not section.entries:
        section.missing = [f"make sample PRESET={preset}"]
    if rows:
        head = ["generator", "images", "n", "recognised as their label", "judge score", "Fréchet distance"]
        section.table = Table(head, rows)
        section.text += " A Fréchet distance is followed by the number of real images that it compares with."
    return section


def _run(path: Path) -> Entry:
    entry = Entry(path.name)
    if (path / "config.yaml").exists():
        entry.config = path / "config.yaml"
        entry.facts += _settings(entry.config)
    sections = _metrics(path)
    measured: dict[str, Any] = {**(sections.get("validate") or sections.get("fit") or {})}
    entry.metrics = {name: value for name, value in measured.get("metrics", {}).items() if not name.startswith("lr-")}
    for word, key in (("step measured", "global_step"), ("images measured", "n")):
        entry.facts += [(word, f"{measured[key]:,}")] if measured.get(key) is not None else []
    entry.facts += _provenance(measured)
    lineage = records.read_derived(path / "lineage.json", Lineage)
    if lineage and lineage.init_from:
        entry.facts.append(("initial weights", lineage.init_from.path))
    entry.curves = list(curves(path))
    entry.pictures = list(_pictures(path))
    sweep = records.read_derived(path / "sweep.json", Sweep)
    probes = records.read_derived(path / PROBES, Probes)
    zero_shot = records.read_derived(path / ZERO_SHOT, ZeroShotResult)
    entry.tables = [*(_sweep(sweep) if sweep else ()), *(_probes(probes) if probes else ())]
    entry.tables += [_zero_shot(zero_shot)] if zero_shot else []
    return entry


def _settings(file: Path) -> list[tuple[str, str]]:
    """The most important settings of a configuration; none, and a warning, if it is broken."""
    try:
        config = yaml_files.read(file) or {}
        trainer, model, data = (config.get(name) or {} for name in ("trainer", "model", "data"))
        settings = {
            "model": str(model.get("class_path", "")).rpartition(".")[2] or None,
            "steps": trainer.get("max_steps"),
            "batch size": (data.get("init_args") or {}).get("batch_size"),
            "precision": trainer.get("precision"),
            "seed": config.get("seed_everything"),
        }
    except (UserError, AttributeError) as error:  # AttributeError: a section is no mapping
        log.warning("%s is broken, and its settings are left out: %s", file, error)
        return []
    return [(name, str(value)) for name, value in settings.items() if value is not None]


def _provenance(measured: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Versions, machine and commit."""
    if measured.get("versions"):
        yield "versions", ", ".join(f"{name} {version}" for name, version in measured["versions"].items())
    yield from ((word, measured[word]) for word in ("machine", "commit") if measured.get(word))


def _sweep(sweep: Sweep) -> Iterator[Table]:
    """A row for each guidance scale of the latest settings."""
    if scales := sweep["scales"]:
        settings = scales[-1]["settings"]
        scales = sorted((one for one in scales if one["settings"] == settings), key=lambda one: one["guidance"])
        names = list(scales[0]["metrics"])
        rows = [[f"{one['guidance']:g}", *(number(one["metrics"][name]["value"]) for name in names)] for one in scales]
        yield Table(["guidance", *names], rows, f"Guidance: {settings.get('num_images', '?')} samples a scale")


def _probes(found: Probes) -> Iterator[Table]:
    """A row for each feature, a column for each probe."""
    if probes := found["probes"]:
        kinds = list(dict.fromkeys(probe["probe"] for probe in probes))
        rows: dict[str, dict[str, str]] = {}
        for probe in probes:
            accuracy = f"{probe['value']:.1%} ± {probe['standard_error']:.1%}"
            rows.setdefault(probe["feature"], {})[probe["probe"]] = accuracy
        caption = (
            f"Probes: accuracy on {found['n_validation']:,} validation images; chance {found['chance']:.1%}; "
            "± is one standard error"
        )
        body = [[name, *(row.get(kind, "–") for kind in kinds)] for name, row in rows.items()]
        yield Table(["feature", *(kind.replace("_", " ") for kind in kinds)], body, caption)


def _zero_shot(found: ZeroShotResult) -> Table:
    """A row for each kind of features."""
    rows = [
        [
            row["features"],
            f"{row['top1']:.1%} ± {row['top1_standard_error']:.1%}",
            f"{row['top5']:.1%} ± {row['top5_standard_error']:.1%}",
        ]
        for row in found["rows"]
    ]
    caption = (
        f"Zero-shot classification of {found['n']:,} validation images into {found['num_classes']} classes; "
        "± is one standard error"
    )
    return Table(["features", "top-1", "top-5"], rows, caption)


def _evaluated(metrics: dict[str, ImageMetric]) -> list[str]:
    """Number of images, share recognised, score and distance of one set of images."""
    cells = {kind_of(name): metric for name, metric in metrics.items() if metric["value"] is not None}
    texts = [f"{next(iter(metrics.values()))['n']:,}"]
    texts += [f"{cells['recognised']['value']:.1%}" if "recognised" in cells else "–"]
    texts += [number(cells["is"]["value"]) if "is" in cells else "–"]
    distance = cells.get("fid") or cells.get("fd") or {"value": None}
    compared = f" (to {distance['reference_n']:,})" if distance.get("reference_n") else ""
    return [*texts, number(distance["value"]) + compared]


def _pictures(path: Path) -> Iterator[Picture]:
    for name, text in PICTURES.items():
        if (file := path / name).exists():
            yield Picture("image/png", file.read_bytes(), f"{text} ({path.parent.name}/{path.name})", file)


def _metrics(path: Path) -> MetricsFile:
    return records.read_derived(path / METRICS, MetricsFile) or {}


def _sample_settings(path: Path) -> SampleSettings | None:
    """The settings in `samples.json`; None with a warning if they are broken."""
    record = records.read_derived(path, Samples)
    try:
        return record and records.decode(record["settings"], SampleSettings, f"the settings in {path}")
    except UserError as error:
        log.warning("%s: these samples are left out", error)
        return None
