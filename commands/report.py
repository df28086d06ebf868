"""One page on all runs of a preset: `python -m commands.report --preset digits` writes runs/digits/report.html.

The page holds everything it shows, curves and pictures included, and loads nothing from elsewhere. It reads what is
there and says of the rest which make target makes it.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import platform
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from callbacks.metrics_file import commit
from metrics.generation import kind_of

TEMPLATE = Path(__file__).with_name("report.html.j2")
MOST_POINTS = 400
MOST_CURVES = 12

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


@dataclass(frozen=True)
class Picture:
    """An image inside the page.

    Args:
        uri: ``data:`` with its bytes.
        text: what it shows.
    """

    uri: str
    text: str


@dataclass
class Run:
    """What is known of one run.

    Args:
        name: its directory below the stage's.
        facts: pairs of a word and a value.
        config: its configuration as YAML text, if it is kept.
        curves: one a group of logged values.
        pictures: drawn by its callbacks.
        metrics: by name.
        tables: measured after it, by a sweep or by probes.
    """

    name: str
    facts: list[tuple[str, str]] = field(default_factory=list)
    config: str = ""
    curves: list[Picture] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    metrics: dict[str, float | None] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)


@dataclass(frozen=True)
class Table:
    """Rows of text under a head; the first column names the row, the caption the table."""

    head: list[str]
    rows: list[list[str]]
    caption: str = ""


@dataclass
class Section:
    """One stage: its runs and their figures side by side, or what makes them."""

    key: str
    title: str
    text: str
    missing: str | None = None
    runs: list[Run] = field(default_factory=list)
    table: Table | None = None


def write_report(directory: Path, preset: str, output: Path) -> Path:
    """Write the page on the runs in ``<directory>`` (runs/<preset>), whole or not at all."""
    sections = [_stage(directory, preset, *stage) for stage in STAGES]
    known = {stage[0] for stage in STAGES} | {"tokens", "samples"}
    for name in sorted(path.name for path in directory.iterdir() if path.is_dir() and path.name not in known):
        section = _stage(directory, preset, name, f"Runs in {name}", "", "")
        sections += [section] if section.runs else []
    sections.append(_samples(directory / "samples", preset))
    loader = FileSystemLoader(TEMPLATE.parent)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    page = environment.get_template(TEMPLATE.name).render(
        preset=preset,
        place=str(directory),
        machine=f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        written=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        commit=commit(),
        sections=sections,
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = output.with_name(f"{output.name}.part")
    unfinished.write_text(page, encoding="utf-8")
    unfinished.replace(output)
    return output


def _stage(directory: Path, preset: str, key: str, title: str, target: str, text: str) -> Section:
    section = Section(key, title, text)
    section.runs = [_run(path) for path in _run_directories(directory / key)]
    section.table = _side_by_side(section.runs)
    if not section.runs:
        section.missing = f"make {target} PRESET={preset}"
    return section


def _run_directories(stage: Path) -> list[Path]:
    """The directories below a stage that hold a run: something was configured or measured there."""
    marks = ("config.yaml", "metrics.json")
    return sorted(path for path in stage.glob("*") if any((path / mark).exists() for mark in marks))


def _run(path: Path) -> Run:
    run = Run(path.name)
    config = path / "config.yaml"
    if config.exists():
        run.config = config.read_text(encoding="utf-8")
        run.facts += _configured(yaml.safe_load(run.config) or {})
    metrics = _json(path / "metrics.json")
    measured = metrics.get("validate") or metrics.get("fit") or {}
    run.metrics = {name: value for name, value in measured.get("metrics", {}).items() if not name.startswith("lr-")}
    if measured:
        versions = ", ".join(f"{name} {version}" for name, version in measured.get("versions", {}).items())
        run.facts += [("step measured", f"{measured['global_step']:,}"), ("versions", versions)]
        run.facts += [("commit", measured["commit"])] if measured.get("commit") else []
    source = (_json(path / "lineage.json").get("init_from") or {}).get("path")
    run.facts += [("begun with the weights of", source)] if source else []
    run.curves = list(_curves(path))
    run.pictures = list(_pictures(path))
    run.tables = [*_sweep(_json(path / "sweep.json")), *_probes(_json(path / "probes.json"))]
    return run


def _sweep(sweep: dict[str, Any]) -> Iterator[Table]:
    """A row a guidance scale, of the settings that were measured last."""
    if entries := sweep.get("scales"):
        settings = entries[-1]["settings"]
        entries = [entry for entry in entries if entry["settings"] == settings]
        names = list(entries[0]["figures"])
        rows = [
            [f"{entry['guidance']:g}", *(_number(entry["figures"][name]["value"]) for name in names)]
            for entry in sorted(entries, key=lambda entry: entry["guidance"])
        ]
        yield Table(["guidance", *names], rows, f"Guidance: {settings['num_images']:,} samples a scale")


def _probes(found: dict[str, Any]) -> Iterator[Table]:
    """A row a subspace and side of the quantization, a column a probe."""
    if probes := found.get("probes"):
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


def _samples(directory: Path, preset: str) -> Section:
    section = Section("samples", "Samples and their evaluation", "Images that the generators draw, seen by the judge.")
    rows = []
    for path in sorted(record.parent for record in directory.glob("*/samples.json")):
        run = Run(path.name, pictures=list(_pictures(path)))
        settings = _json(path / "samples.json")["settings"]
        run.facts = [
            ("images", f"{settings['num_images']:,}, classes {settings['classes']}"),
            ("generator", f"{settings['generator']['run']}, step {settings['generator']['step']:,}"),
            ("sampler", ", ".join(f"{name} {value}" for name, value in settings["sampler"].items())),
            ("seed", str(settings["seed"])),
        ]
        section.runs.append(run)
        evaluated = _json(path / "metrics.json").get("evaluate")
        if evaluated is None:
            run.facts.append(("evaluation", f"not done yet: make evaluate PRESET={preset}"))
            continue
        run.facts += [("note", note) for note in evaluated["notes"]]
        rows += [
            [path.name, SETS[name], *_evaluated(evaluated["figures"][name])]
            for name in SETS
            if name in evaluated["figures"]
        ]
    if not section.runs:
        section.missing = f"make sample PRESET={preset}"
    if rows:
        section.table = Table(["generator", "images", "n", *KINDS.values()], rows)
        section.text += " Fréchet distances are to the real validation images, whose number stands beside them."
    return section


def _evaluated(figures: dict[str, dict[str, Any]]) -> list[str]:
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
            texts.append(f"{_number(figure['value'])}{beside}")
    return texts


def _side_by_side(runs: list[Run]) -> Table | None:
    """Figures in rows, runs in columns."""
    names = sorted({name for run in runs for name in run.metrics})
    if not names:
        return None
    measured = [run for run in runs if run.metrics]
    rows = [[name, *(_number(run.metrics.get(name)) for run in measured)] for name in names]
    return Table(["figure", *(run.name for run in measured)], rows)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _pictures(path: Path) -> Iterator[Picture]:
    for file, text in PICTURES.items():
        if (path / file).exists():
            yield Picture(_uri("image/png", (path / file).read_bytes()), f"{text} ({path.parent.name}/{path.name})")


def _curves(path: Path) -> Iterator[Picture]:
    """Logged values over steps; those that differ in their last number share a picture."""
    if not any(path.glob("events.out.tfevents.*")):
        return
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    events = EventAccumulator(str(path), size_guidance={SCALARS: 0})
    events.Reload()
    groups: dict[str, list[str]] = {}
    for tag in sorted(events.Tags()[SCALARS]):
        if tag.startswith(("train/", "val/")) and not tag.endswith("_originals") and len(events.Scalars(tag)) > 1:
            groups.setdefault(re.sub(r"/\d+$", "", tag), []).append(tag)
    # what was optimized and what was measured come first; gradient norms and the like last
    order = sorted(groups, key=lambda name: (name != "train/loss", not name.startswith("val/"), name))
    for name in order[:MOST_CURVES]:
        lines = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in groups[name]}
        yield Picture(_uri("image/svg+xml", _draw(name, lines)), f"{name} over steps ({path.parent.name}/{path.name})")


def _draw(name: str, lines: dict[str, list[tuple[int, float]]]) -> bytes:
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with rc_context({"svg.hashsalt": name}):  # the same page for the same runs
        figure = Figure(figsize=(4.2, 2.6), layout="constrained")
        axes = figure.subplots()
        for tag, points in lines.items():
            thinned = points[:: -(-len(points) // MOST_POINTS)]
            axes.plot(*zip(*thinned, strict=True), label=tag.removeprefix(f"{name}/"), linewidth=1.2)
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("step", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
        if len(lines) > 1:
            axes.legend(fontsize=8)
        file = io.BytesIO()
        FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None})
    return file.getvalue()


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def main(arguments: list[str] | None = None) -> None:
    """Write the page and say where it is."""
    parser = argparse.ArgumentParser(prog="python -m commands.report", description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="digits", help="whose runs")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="root of all runs")
    parser.add_argument("--output", type=Path, help="the page; by default report.html beside the preset's runs")
    options = parser.parse_args(arguments)
    directory = options.runs / options.preset
    if not directory.is_dir():
        sys.exit(f"error: there are no runs in {directory}: make demo PRESET={options.preset} makes them")
    print(write_report(directory, options.preset, options.output or directory / "report.html"))


if __name__ == "__main__":
    main()
