"""The papers' tables, as `python -m experiments` left them in runs/experiments/results, and rFD against gFD."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

import yaml

from artifacts.repository import REPOSITORY
from artifacts.run_files import Results
from commands.report.content import Entry, Picture, Section, Table, number
from commands.report.drawing import Point
from commands.report.drawing import discrepancy as draw
from polytoken import records

DISTANCES = {"judge": ("val/rfd/judge", "gfd/judge"), "Inception": ("val/rfid/inception", "gfid/inception")}


def read(directory: Path, preset: str) -> list[Results]:
    """What the experiments of this preset came to, by name."""
    found = (records.read_derived(file, Results) for file in sorted(directory.glob("*/*.json")))
    return [results for results in found if results and results["preset"] == preset]


def tables(results: list[Results], preset: str) -> Section:
    """Each experiment's table with the paper's columns beside, and whether directions hold; commands for the rest."""
    section = Section("experiments", "Tables of the papers", "Our figures beside the papers'.")
    section.text += " Theirs are at their scale, so directions compare, and values do not. ± is the seeds' deviation."
    done = [found for found in results if found["figures"]]
    for found in done:
        made = [Table(table["head"], table["rows"], table["caption"]) for table in found["tables"]]
        section.entries.append(Entry(found["title"], list(_facts(found)), tables=made))
    names = {found["experiment"] for found in done}
    section.missing = [
        f"make experiment EXPERIMENT={name} PRESET={preset}" for name in _made_for(preset) if name not in names
    ]
    return section


def discrepancy(results: list[Results]) -> Section:
    """How far samples fall behind reconstructions: a picture and a table of each experiment that measured both."""
    section = Section("discrepancy", "Reconstruction against generation", "")
    for found in results:
        for network, metrics in DISTANCES.items():
            if len(points := list(_points(found, *metrics))) > 1:
                picture = Picture("image/svg+xml", draw(points), f"gFD over rFD, by {network} ({found['experiment']})")
                table = Table(["", "rFD", "gFD", "gFD − rFD"], [_row(point) for point in points])
                section.entries.append(Entry(found["title"], pictures=[picture], tables=[table]))
    if section.entries:
        section.text = (
            "Fréchet distance of samples over that of their tokenizer's reconstructions, both to real images and by "
            "one network. Points above one another share a tokenizer. Better reconstruction (left) is of use only "
            "where samples follow (down)."
        )
    else:
        section.text = "No experiment here has measured both samples and the reconstructions of their tokenizer."
        section.missing = ["make experiment EXPERIMENT=ssq/table5 PRESET=digits"]
    return section


def _facts(found: Results) -> Iterator[tuple[str, str]]:
    yield "experiment", found["experiment"]
    for word, column in (("images", "n"), ("measured", "protocol"), ("commit", "commit"), ("machine", "machine")):
        values = dict.fromkeys(str(figure[column]) for figure in found["figures"] if figure.get(column) is not None)
        if values:
            yield word, "; ".join(values)


def _points(found: Results, reconstructed: str, generated: str) -> Iterator[Point]:
    """The rows that have both distances; seeds in their order."""
    values: dict[tuple[str, str], list[float]] = {}
    for figure in found["figures"]:
        values.setdefault((figure["row"], figure["metric"]), []).append(figure["value"])
    for row in dict.fromkeys(figure["row"] for figure in found["figures"]):
        if (row, reconstructed) in values and (row, generated) in values:
            yield Point(row, values[row, reconstructed], values[row, generated])


def _row(point: Point) -> list[str]:
    means = fmean(point.reconstructed), fmean(point.generated)
    return [point.label, *map(number, means), number(means[1] - means[0])]


def _made_for(preset: str) -> list[str]:
    """The experiments that are made for a preset, as `<paper>/<table>`."""
    files = sorted((REPOSITORY / "experiments").glob("*/*.yaml"))
    return [f"{file.parent.name}/{file.stem}" for file in files if preset in _presets(file)]


def _presets(file: Path) -> list[str]:
    return yaml.safe_load(file.read_text(encoding="utf-8")).get("presets") or []
