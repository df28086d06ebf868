"""The runs of a preset, stage by stage, and the samples: what was configured, measured and drawn."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from artifacts.run_files import (
    Comparison,
    ImageMetric,
    Lineage,
    Measured,
    MetricsFile,
    Probes,
    Samples,
    SampleSettings,
    Sweep,
)
from commands.report.content import Entry, Picture, Section, Table, number
from commands.report.drawing import curves
from polytoken import records
from polytoken.errors import UserError
from polytoken.metrics.generation import kind_of

log = logging.getLogger(__name__)

# directory below runs/<preset>, heading, make target, what is to be seen there
STAGES = (
    ("teacher", "Judge and teachers", "teacher", "Small networks that stand in for CLIP, DINOv2 and Inception."),
    ("tokenizer", "Tokenizers", "tokenizer", "Images to codes and back."),
    ("stage1", "Generators, stage 1", "stage1", "One code a patch: global structure."),
    ("stage2", "Generators, stage 2", "stage2", "All codes of a patch: local detail."),
)
PICTURES = {
    "reconstructions.png": "Validation images over their reconstructions",
    "grid.png": "Samples; the class stands at the left of its row",
    "usage.png": "How often the codes of each sub-codebook are used",
    "affinity.png": "How alike the subspaces are to one another, and to teachers",
    "subspaces.png": "Images decoded without one subspace, and from one alone",
    "code_map.png": "Codes of each subspace, coloured by class",
    "sweep.png": "Distance and score over the guidance",
}
SETS = {
    "samples": "samples",
    "reconstructions": "reconstructions of the validation images",
    "validation": "real validation images",
    "train": "real training images",
}
KINDS = {"recognised": "recognised as their label", "is": "judge score", "fd": "Fréchet distance"}


def stages(directory: Path, preset: str) -> Iterator[Section]:
    """The curriculum's stages, and after them those of other generators."""
    for stage in STAGES:
        yield _stage(directory, preset, *stage)
    known = {stage[0] for stage in STAGES} | {"tokens", "samples"}
    for name in sorted(path.name for path in directory.iterdir() if path.is_dir() and path.name not in known):
        section = _stage(directory, preset, name, f"Runs in {name}", "", "")
        if section.entries:
            yield section


def samples(directory: Path, preset: str) -> Section:
    """What the generators drew, and what it is worth."""
    section = Section("samples", "Samples and their evaluation", "Images that the generators draw, seen by the judge.")
    rows = []
    for path in sorted(record.parent for record in directory.glob("*/samples.json")):
        entry = Entry(path.name, pictures=list(_pictures(path)))
        settings = _settings(path / "samples.json")
        if settings is None:
            continue
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
        entry.facts.append(("compared with", evaluated["reference"]["reference"]))
        entry.facts += _made(evaluated)
        entry.facts += [("note", note) for note in evaluated["notes"]]
        rows += [
            [path.name, SETS[name], *_evaluated(evaluated["figures"][name])]
            for name in SETS
            if name in evaluated["figures"]
        ]
    if not section.entries:
        section.missing = [f"make sample PRESET={preset}"]
    if rows:
        section.table = Table(["generator", "images", "n", *KINDS.values()], rows)
        section.text += " Beside a Fréchet distance stands the number of real images that it is to."
    return section


def _stage(directory: Path, preset: str, key: str, title: str, target: str, text: str) -> Section:
    section = Section(key, title, text)
    section.entries = [_run(path) for path in _run_directories(directory / key)]
    section.table = _side_by_side(section.entries)
    if not section.entries:
        section.missing = [f"make {target} PRESET={preset}"]
    return section


def _run_directories(stage: Path) -> list[Path]:
    """The directories below a stage that hold a run: something was configured or measured there."""
    marks = ("config.yaml", "metrics.json")
    return sorted(path for path in stage.glob("*") if any((path / mark).exists() for mark in marks))


def _run(path: Path) -> Entry:
    entry = Entry(path.name)
    config = path / "config.yaml"
    if config.exists():
        entry.config = config
        entry.facts += _configured(yaml.safe_load(entry.configuration) or {})
    metrics = _metrics(path)
    measured = metrics.get("validate") or metrics.get("fit") or {}
    entry.metrics = {name: value for name, value in measured.get("metrics", {}).items() if not name.startswith("lr-")}
    if measured:
        entry.facts.append(("step measured", f"{measured['global_step']:,}"))
        entry.facts += [("images measured", f"{measured['n']:,}")] if measured.get("n") else []
        entry.facts += _made(measured)
    lineage = records.read_derived(path / "lineage.json", Lineage)
    if lineage and lineage["init_from"]:
        entry.facts.append(("begun with the weights of", lineage["init_from"]["path"]))
    entry.curves = list(curves(path))
    entry.pictures = list(_pictures(path))
    sweep = records.read_derived(path / "sweep.json", Sweep)
    probes = records.read_derived(path / "probes.json", Probes)
    entry.tables = [*(_sweep(sweep) if sweep else ()), *(_probes(probes) if probes else ())]
    return entry


def _metrics(path: Path) -> MetricsFile:
    return records.read_derived(path / "metrics.json", MetricsFile) or {}


def _settings(path: Path) -> SampleSettings | None:
    """The settings in `samples.json`; a broken file is set aside."""
    record = records.read_derived(path, Samples)
    try:
        return record and records.decode(record["settings"], SampleSettings, f"the settings in {path}")
    except UserError as error:
        log.warning("%s: these samples are left out", error)
        return None


def _made(measured: Measured | Comparison) -> Iterator[tuple[str, str]]:
    """On what, and with which code."""
    if measured.get("versions"):
        yield "versions", ", ".join(f"{name} {version}" for name, version in measured["versions"].items())
    for word in ("machine", "commit"):
        if measured.get(word):
            yield word, measured[word]


def _sweep(sweep: Sweep) -> Iterator[Table]:
    """A row a guidance scale, of the settings that were measured last."""
    if entries := sweep["scales"]:
        settings = entries[-1]["settings"]
        entries = [entry for entry in entries if entry["settings"] == settings]
        names = list(entries[0]["figures"])
        rows = [
            [f"{entry['guidance']:g}", *(number(entry["figures"][name]["value"]) for name in names)]
            for entry in sorted(entries, key=lambda entry: entry["guidance"])
        ]
        yield Table(["guidance", *names], rows, f"Guidance: {_counted(settings)} samples a scale")


def _counted(settings: dict[str, Any]) -> str:
    count = settings.get("num_images")
    return f"{count:,}" if isinstance(count, int) else "?"


def _probes(found: Probes) -> Iterator[Table]:
    """A row a subspace and side of the quantization, a column a probe."""
    if probes := found["probes"]:
        kinds = list(dict.fromkeys(probe["probe"] for probe in probes))
        rows: dict[tuple[str, str], dict[str, str]] = {}
        for probe in probes:
            text = f"{probe['value']:.1%} ± {probe['standard_error']:.1%}"
            rows.setdefault((probe["subspace"], probe["vectors"]), {})[probe["probe"]] = text
        caption = (
            f"Probes: {found['n_validation']:,} validation images given their class; chance {found['chance']:.1%}; "
            "± is one standard error"
        )
        body = [[*key, *(texts.get(kind, "–") for kind in kinds)] for key, texts in rows.items()]
        yield Table(["subspace", "quantization", *(kind.replace("_", " ") for kind in kinds)], body, caption)


def _configured(config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The few settings a reader asks for first; the whole configuration is folded below them."""
    trainer = config.get("trainer") or {}
    data = (config.get("data") or {}).get("init_args") or {}
    model = config.get("model") or {}
    if "class_path" in model:
        yield "model", str(model["class_path"]).rpartition(".")[2]
    for name, value in (
        ("steps", trainer.get("max_steps")),
        ("batch size", data.get("batch_size")),
        ("precision", trainer.get("precision")),
        ("seed", config.get("seed_everything")),
    ):
        if value is not None:
            yield name, str(value)


def _evaluated(figures: dict[str, ImageMetric]) -> list[str]:
    """The number of images, then one cell a kind of figure; a prefix (g, r) says of what it is."""
    cells = {kind_of(name): figure for name, figure in figures.items()}
    cells |= {"fd": cells["fid"]} if "fid" in cells else {}
    texts = [f"{next(iter(cells.values()))['n']:,}"]
    for kind in KINDS:
        figure = cells.get(kind)
        if figure is None or figure["value"] is None:
            texts.append("–")
        elif kind == "recognised":
            texts.append(f"{figure['value']:.1%}")
        else:
            beside = f" (to {figure['reference_n']:,})" if figure.get("reference_n") else ""
            texts.append(f"{number(figure['value'])}{beside}")
    return texts


def _side_by_side(entries: list[Entry]) -> Table | None:
    """Figures in rows, runs in columns."""
    names = sorted({name for entry in entries for name in entry.metrics})
    if not names:
        return None
    measured = [entry for entry in entries if entry.metrics]
    rows = [[name, *(number(entry.metrics.get(name)) for entry in measured)] for name in names]
    return Table(["figure", *(entry.name for entry in measured)], rows)


def _pictures(path: Path) -> Iterator[Picture]:
    for name, text in PICTURES.items():
        if (file := path / name).exists():
            yield Picture("image/png", file.read_bytes(), f"{text} ({path.parent.name}/{path.name})", file)
