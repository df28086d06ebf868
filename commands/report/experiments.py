"""Tables of the papers from runs/experiments/results, and generation over reconstruction."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

from artifacts import yaml_files
from artifacts.repository import REPOSITORY
from artifacts.results import Results, Table
from commands.report.content import Entry, Section, number
from commands.report.drawing import Points
from commands.report.drawing import discrepancy as draw
from polytoken import records

DISTANCES = {  # network: of reconstructions, of samples
    "judge": ("rfd/judge", "gfd/judge"),
    "EfficientNet-Lite2": ("rfd/efficientnet_lite2", "gfd/efficientnet_lite2"),
    "Inception": ("rfid/inception", "gfid/inception"),
}


def read(directory: Path, preset: str) -> list[Results]:
    """Results of the experiments at this preset, by name."""
    found = [records.read_derived(file, Results) for file in sorted(directory.glob("*/*.json"))]
    return [results for results in found if results is not None and results.preset == preset]


def tables(found: list[Results], preset: str) -> tuple[Section, Section]:
    """The table of each experiment with the paper's columns; and, folded, commands for the other experiments."""
    section = Section("experiments", "Tables of the papers", "Our numbers next to the papers'.")
    section.text += " The papers' are at their scale: compare directions, not values. ± is the seeds' deviation."
    done = {results.experiment: results for results in found if results.records}
    for results in done.values():
        facts = [("experiment", results.experiment)]
        for word, column in (("images", "n"), ("measured", "protocol"), ("commit", "commit"), ("machine", "machine")):
            values = dict.fromkeys(str(value) for record in results.records if (value := getattr(record, column)))
            facts += [(word, "; ".join(values))] if values else []
        section.entries.append(Entry(results.title, facts, tables=results.tables))
    others = Section("more", "Experiments that were not run", "Tables of the papers at this preset.", folded=True)
    for file in sorted((REPOSITORY / "experiments").glob("*/*.yaml")):
        name = f"{file.parent.name}/{file.stem}"
        if name not in done and preset in yaml_files.read(file)["presets"]:
            others.missing.append(f"make experiment EXPERIMENT={name} PRESET={preset}")
    return section, others


def discrepancy(found: list[Results]) -> Iterator[Section]:
    """A plot and a table for each experiment that measured samples and the reconstructions of their tokenizer."""
    section = Section("discrepancy", "Reconstruction against generation")
    for results in found:
        for network, (reconstructed, generated) in DISTANCES.items():
            # an experiment that sweeps guidance has no other samples
            found_by = (_points(results, f"val/{reconstructed}", name) for name in (generated, f"sweep/{generated}"))
            if len(points := max(found_by, key=len)) > 1:
                picture = draw(points, f"gFD over rFD, by {network} ({results.experiment})")
                means = {row: (fmean(rfd), fmean(gfd)) for row, (rfd, gfd) in points.items()}
                rows = [[row, number(rfd), number(gfd), number(gfd - rfd)] for row, (rfd, gfd) in means.items()]
                table = Table(["", "rFD ↓", "gFD ↓", "gFD − rFD"], rows)
                section.entries.append(Entry(results.title, pictures=[picture], tables=[table]))
    section.text = (
        "Fréchet distance of samples over that of their tokenizer's reconstructions, both to real images and by one "
        "network. Points above one another share a tokenizer. Better reconstruction (left) helps only where samples "
        "follow (down)."
    )
    if section.entries:
        yield section


def _points(results: Results, reconstructed: str, generated: str) -> Points:
    """The rows that have both distances, with those of the seeds."""
    values: dict[str, dict[str, list[float]]] = {}
    for record in results.records:
        values.setdefault(record.row, {}).setdefault(record.metric, []).append(record.value)
    return {
        row: (metrics[reconstructed], metrics[generated])
        for row, metrics in values.items()
        if reconstructed in metrics and generated in metrics
    }
