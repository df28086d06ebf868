"""Everything that a curriculum needs, before its first step: `make check PRESET=imagenet DATA=/path`.

Composes the configurations of tokenizer, tokens, generator and samples, each after `--`, and looks for data, weights,
reference, disk space and GPUs. Exit code 1 if something is missing. See docs/curriculum.md.
"""

from __future__ import annotations

import shutil
import sys
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from commands.cli.composed import compose
from commands.comparison import default_reference
from commands.estimates import MACHINE, Estimate, estimates
from commands.preset import SOURCES, Preset
from commands.processes import devices, processes
from commands.program import new_parser, print_table, run
from datamodules.images import ImageDataModule
from datamodules.sources.base import SPLITS, ImageRecords
from polytoken.building import build
from polytoken.errors import UserError
from polytoken.images import UNREADABLE
from polytoken.metrics import inception
from polytoken.teachers import Teacher
from polytoken.teachers.efficientnet import EFFICIENTNETS, MEASURES, TRAINS

STAGES = ("tokenizer", "tokens", "generator", "samples")
GOOD, MISSING, LATER = "there", "MISSING", "made first"
PROBED = 16  # images of a split that are tried, until one can be read


@dataclass(frozen=True)
class Finding:
    """One thing that a curriculum needs.

    Args:
        what: the thing.
        state: what was found.
        remedy: advice; empty unless it is missing.
    """

    what: str
    state: str
    remedy: str = ""


def data(section: dict[str, Any]) -> tuple[list[Finding], int]:
    """Both splits, the classes, and one readable image of each; and the number of training images."""
    try:
        module = build(section, ImageDataModule, "data", SOURCES)
        splits = {name: module.source.split(name) for name in SPLITS}
        classes = len(module.source.class_to_idx)
    except UserError as error:
        return [Finding("data", MISSING, str(error))], 0
    found = []
    for name, records in splits.items():
        found.append(_images(f"{name} images", records))
    return [*found, Finding("classes", f"{classes:,}")], len(splits["train"])


def _images(what: str, records: ImageRecords) -> Finding:
    """Number of images, and size of a readable one; up to PROBED of them, evenly spread, are tried."""
    said = ""
    for index in sorted({index * len(records) // PROBED for index in range(PROBED)}):
        try:
            width, height = records.load(index).size
        except UNREADABLE as error:
            said = said or f"{records.describe(index)} cannot be read: {error}"
            continue
        state = f"{len(records):,}, such as {width} × {height} px"
        return Finding(what, f"{state}; {said}" if said else state)
    return Finding(what, MISSING, said)


def weights(config: Any, made: Path) -> Iterator[Finding]:
    """Files of weights that a configuration names, and the teachers among them.

    Args:
        config: a composed configuration.
        made: directory whose files `make teacher` writes.
    """
    if isinstance(config, list):
        for value in config:
            yield from weights(value, made)
    if not isinstance(config, dict) or ("discriminator" in config and config.get("weight") == 0):
        return  # an adversarial term of weight 0 builds no discriminator
    name, file = config.get("name"), config.get("weights")
    if config.get("class_path") == "polytoken.losses.EfficientNetFeatures":
        yield _installed(TRAINS)
    if isinstance(file, str) and Path(file).parent == made:
        yield Finding(file, GOOD if Path(file).exists() else LATER)
    elif isinstance(name, str) and "final_norm" in config:
        yield _teacher(name, config)
    elif isinstance(file, str):
        yield _file(Path(file), "make weights")
    for value in config.values():
        yield from weights(value, made)


def _installed(name: str) -> Finding:
    try:
        return Finding(EFFICIENTNETS[name].path.name, GOOD)
    except UserError as error:
        return Finding(name, MISSING, str(error))


def _teacher(name: str, config: dict[str, Any]) -> Finding:
    if name in EFFICIENTNETS:
        return _installed(name)
    file = Path(config.get("weights") or f"weights/{name}.safetensors")
    if not file.exists():
        return Finding(str(file), MISSING, f"make weights TEACHERS={name}")
    try:
        Teacher(**config).check()
    except UserError as error:
        return Finding(str(file), MISSING, str(error))
    return Finding(str(file), GOOD)


def _file(file: Path, remedy: str) -> Finding:
    return Finding(str(file), GOOD) if file.exists() else Finding(str(file), MISSING, remedy)


def evaluation(preset: Preset, runs: Path) -> Iterator[Finding]:
    """Network and reference of the evaluation."""
    if preset.own_network == MEASURES:
        yield _installed(MEASURES)
        return
    if preset.own_network is not None:
        file = preset.network_file(preset.own_network, runs)
        yield Finding(str(file), GOOD if file.exists() else LATER)
        return
    yield _file(inception.WEIGHTS, "make weights")
    try:
        yield Finding(str(default_reference(runs, preset.name, "inception", "generation")), GOOD)
    except UserError as error:
        published = preset.name == "imagenet"
        yield Finding("reference of gFID", MISSING, str(error)) if published else Finding("reference of gFID", LATER)


def machine(wanted: int, in_job: bool) -> Finding:
    """GPUs against those that the stages ask for."""
    what = f"{wanted} GPU(s)"
    if in_job:
        return Finding(what, "of the jobs; not looked at here")
    count = torch.cuda.device_count()
    if count >= wanted:
        return Finding(what, f"{count}, {torch.cuda.get_device_name(0)}")
    if wanted == 1:
        return Finding(what, "none: a CPU trains, which suits small presets")
    return Finding(
        what, f"{MISSING}: {count}", f"DEVICES={max(count, 1)}, which makes smaller batches, or LAUNCH=slurm"
    )


def disk(runs: Path, needed: list[Estimate]) -> Finding:
    """Free space against what the stages write; checkpoints are not counted."""
    place = next(path for path in (runs.absolute(), *runs.absolute().parents) if path.exists())
    free, size = shutil.disk_usage(place).free, sum(estimate.size or 0 for estimate in needed)
    unknown = " and ".join(estimate.stage for estimate in needed if estimate.size is None)
    what = f"{size / 1e9:,.1f} GB in {runs}, and checkpoints" + (f"; {unknown}: unknown" if unknown else "")
    if free > size:
        return Finding(what, f"{free / 1e9:,.0f} GB free")
    return Finding(what, f"{MISSING}: {free / 1e9:,.0f} GB free", "make room, or link runs/ to a larger disk")


def work(given: Namespace) -> int:
    """Print what was found, and the estimates; 1 if something is missing."""
    if len(given.stages) != len(STAGES):
        raise UserError(
            f"expected the arguments of cli.py for {', '.join(STAGES)}, each after --, and got {len(given.stages)} of "
            "them: make check PRESET=name gives all"
        )
    tokenizer, tokens, generator, sample = map(compose, given.stages)
    preset = Preset.load(given.preset)
    found, images = data(tokenizer["data"])
    for config in (tokenizer, generator):
        found += weights([config["model"], config["trainer"].get("callbacks")], given.runs / preset.name / "teacher")
    found += evaluation(preset, given.runs)
    needed = [*estimates(tokenizer, tokens, generator, sample, images)]
    trainers = [config["trainer"] for config in (tokenizer, tokens, generator, sample)]
    wanted = max(devices(trainer) or 1 for trainer in trainers)
    sharing = max(processes(trainer) or 1 for trainer in trainers)
    found += [disk(given.runs, needed), machine(sharing if given.in_job else wanted, given.in_job)]
    rows = [(finding.what, finding.state, finding.remedy) for finding in dict.fromkeys(found)]
    print_table(f"what {preset.name} needs", ("what", "state", "remedy"), rows, left=3)
    shown = [estimate.row(sharing) for estimate in needed]
    notes = [f"measured on {MACHINE}; here as if {sharing} shared the work evenly, without teachers and validation"]
    if all(estimate.seconds is None for estimate in needed):
        notes = ["the log of a run has its time left"]
    print_table("time and disk, estimated", ("stage", "work", "time", "disk"), shown, notes, left=2)
    missing = [finding.what for finding in dict.fromkeys(found) if finding.state.startswith(MISSING)]
    print(f"missing: {', '.join(missing)}" if missing else "nothing is missing")
    return int(bool(missing))


def main(arguments: list[str] | None = None) -> None:
    """Run the program."""
    given = sys.argv[1:] if arguments is None else arguments
    ends = [index for index, word in enumerate(given) if word == "--"]
    own, *stages = (given[start:end] for start, end in pairwise([0, *ends, len(given)]))
    parser = new_parser("commands.check", __doc__)
    parser.add_argument("--preset", default="digits", help="preset of the curriculum")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="root of all runs")
    parser.add_argument("--in-job", action="store_true", help="the stages run as jobs, on machines with GPUs")
    parser.set_defaults(stages=[words[1:] for words in stages])
    run(parser, work, own)


if __name__ == "__main__":
    main()
