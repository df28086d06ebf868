"""Runs of a preset, stage by stage, and their samples."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from artifacts.results import Table
from artifacts.run_files import METRICS, Samples, SampleSettings
from artifacts.timing import images_per_second, read_timing
from commands.image_sets import table_of
from commands.report import runs
from commands.report.content import Entry, Picture, Section
from polytoken import records
from polytoken.errors import UserError
from polytoken.generators.record import run_name

log = logging.getLogger(__name__)

STAGES = {  # directory below runs/<preset>, which is the make target too: heading and text
    "tokenizer": ("Tokenizers", "Images to codes and back."),
    "stage1": ("Generators, stage 1", "One code per patch: global structure."),
    "stage2": ("Generators, stage 2", "All codes of a patch: local detail."),
}
TEACHERS = ("Judge and teachers", "Small networks in place of CLIP, DINOv2 and Inception.")
FILES = ("config.yaml", METRICS)  # a directory with one of these holds a run
REFERENCE = "A Fréchet distance is followed by the number of real images that it compares with."


def sections(directory: Path, preset: str) -> Iterator[Section]:
    """The curriculum's stages, followed by those of other generators, and by the teachers."""
    known = {*STAGES, "teacher", "tokens", "samples"}
    names = sorted({path.name for path in directory.iterdir() if path.is_dir()} - known)
    others = [_section(directory, name, f"Generator {name}", "") for name in names]
    others = [section for section in others if section.entries]
    own = [_section(directory, key, *words) for key, words in STAGES.items()]
    needed = _needed(own, bool(others))
    for section in own:
        if section.entries or section.key in needed:
            section.missing = [] if section.entries else [f"make {section.key} PRESET={preset}"]
            yield section
    yield from others
    teachers = _section(directory, "teacher", *TEACHERS)
    teachers.missing = [] if teachers.entries else [f"make teacher PRESET={preset}"]
    teachers.folded = True
    yield teachers


def _needed(own: list[Section], others: bool) -> set[str]:
    """Stages that the curriculum of these runs has: none but the tokenizer, if its generator has no stages.

    A trained stage 2 no longer needs stage 1. The default generator of a representation tokenizer has no stages.
    """
    tokenizers, stage1, stage2 = (section.entries for section in own)
    features = tokenizers and all(("model", "RepresentationTokenizer") in entry.facts for entry in tokenizers)
    return {"tokenizer"} if stage2 or ((others or features) and not stage1) else {*STAGES}


def _section(directory: Path, key: str, title: str, text: str) -> Section:
    paths = [path for path in sorted((directory / key).glob("*")) if path.is_dir()]
    section = Section(key, title, text)
    for path in paths:
        if any((path / file).exists() for file in FILES):
            tokens = directory / "tokens" / path.name if key == "tokenizer" else path / "tokens"
            section.entries.append(runs.read(path, tokens))
    section.tables, section.details = runs.compared(section.entries)
    if key == "tokenizer":
        section.pictures = _side_by_side(section.entries)
    return section


def _side_by_side(entries: list[Entry]) -> list[Picture]:
    """The reconstructions of several tokenizers, taken from their entries."""
    found = {id(entry): _named(entry, "reconstructions.png") for entry in entries}
    if sum(picture is not None for picture in found.values()) < 2:
        return []
    for entry in entries:
        entry.pictures = [picture for picture in entry.pictures if picture is not found[id(entry)]]
    return [picture for picture in found.values() if picture is not None]


def _named(entry: Entry, name: str) -> Picture | None:
    return next((picture for picture in entry.pictures if picture.path and picture.path.name == name), None)


def samples(directory: Path, preset: str) -> Section:
    """Samples of the generators, and their evaluation."""
    section = Section("samples", "Samples", "Images of the generators.")
    measured = 0
    for path in sorted(record.parent for record in directory.glob("*/samples.json")):
        if (settings := sample_settings(path)) is None:
            continue
        section.entries.append(sampled(path, settings, preset))
        measured += bool(section.entries[-1].tables)
    if not section.entries:
        section.missing = [f"make sample PRESET={preset}"]
    if measured:
        section.text += f" {REFERENCE}"
    return section


def sampled(path: Path, settings: SampleSettings, preset: str) -> Entry:
    """Samples in a directory, and their evaluation."""
    entry = Entry(path.name, pictures=list(runs.pictures(path)))
    source = settings["generator"]
    sampler = {name: value for name, value in settings["sampler"].items() if value is not None}
    speed = images_per_second(read_timing(path))
    entry.facts = [
        ("images", f"{settings['num_images']:,}, classes {settings['classes']}"),
        ("generator", f"{run_name(source['run'])}, step {source['step']:,}"),
        ("sampler", ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in sampler.items())),
        ("seed", str(settings["seed"])),
        *([("speed", f"{speed:,.3g} images/s")] if speed else []),
    ]
    evaluated = runs.metrics_of(path).get("evaluate")
    if evaluated is None:
        entry.facts.append(("evaluation", f"not done yet: make evaluate PRESET={preset}"))
        return entry
    network = evaluated["extractor"]["name"]
    entry.facts.append(("compared with", f"{evaluated['reference']['reference']}, by {network}"))
    entry.facts += [("note", note) for note in evaluated["notes"]]
    entry.facts += runs.provenance(evaluated)
    table: Table | None = table_of(evaluated, f"Measured by {network}")
    entry.tables += [table] if table else []
    return entry


def sample_settings(path: Path) -> SampleSettings | None:
    """The settings in `samples.json`; None with a warning if they are broken."""
    file = path / "samples.json"
    record = records.read_derived(file, Samples)
    try:
        return record and records.decode(record["settings"], SampleSettings, f"the settings in {file}")
    except UserError as error:
        log.warning("%s: these samples are left out", error)
        return None
