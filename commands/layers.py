"""Layer analysis of generators: `python -m commands.layers --run runs/digits/llamagen_ifsq/ifsq`.

Measures STS, NTS, CKNNA and linear CKA of every block (iFSQ section 4.2). Hidden states are those of teacher forcing on
the tokens of validation images, or on tokens that the generator has drawn; the teacher sees the images, or the decoded
tokens. Writes `layers.json` and `layers.png` into each run. See docs/analysis.md, "Layers".
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from artifacts.provenance import commit, versions
from artifacts.repository import PRESETS
from artifacts.run_files import LAYERS, Layers
from callbacks.measure.layer_analysis import draw_layers, layers_record
from commands import tables
from commands.measuring import batches_of, images_of
from commands.preset import preset_of
from commands.program import best_device, new_parser, print_table, run
from commands.progress import track
from polytoken import records
from polytoken.codec import FrozenCodec
from polytoken.errors import UserError
from polytoken.generators.alignment import aligned_block
from polytoken.images import from_uint8, save_png
from polytoken.loading import Checkpoint
from polytoken.metrics.layers import LayerStatistics
from polytoken.pipeline import GenerationPipeline
from polytoken.precision import full_precision
from polytoken.sampling import Guidance
from polytoken.specs import Tokens
from polytoken.teachers import Teacher

Batch = tuple[Tensor, Tensor, Tokens]  # images (B, 3, H, W) in [-1, 1], labels (B,), tokens
Origin = Literal["validation", "generated"]
PUBLISHED = "dinov2_base"


@dataclass(frozen=True)
class Analysis:
    """Settings of a measurement.

    Args:
        source: where images and tokens come from.
        max_images: most images, evenly spread over the validation split.
        k: neighbours of CKNNA.
        time: time of a flow in (0, 1); 1 are data.
        probe: also fit a linear probe for the class to half of the images, given the null class, and test the rest.
        guidance: of generated tokens.
        seed: of generated tokens.
        batch_size: images at a time.
        unit_rows: scale features to unit length for CKNNA.
    """

    source: Origin = "validation"
    max_images: int = 2048
    k: int = 10
    time: float = 0.5
    probe: bool = False
    guidance: float = 1.0
    seed: int = 0
    batch_size: int = 100
    unit_rows: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.time < 1:
            raise UserError(f"--time is {self.time}: it must lie between 0, noise, and 1, data")
        if self.k < 2 or self.max_images <= max(self.k, 3):
            raise UserError(
                f"--k is {self.k} and --max-images {self.max_images}: CKNNA needs a k of 2 or more, and more images "
                f"than {max(self.k, 3)}"
            )
        if self.batch_size < 1:
            raise UserError(f"--batch-size is {self.batch_size}: it must be at least 1")


def analyse(run: Path, teacher: Teacher, analysis: Analysis, device: torch.device) -> Layers:
    """Measure the blocks of a generator; returns the content of ``layers.json``.

    Args:
        run: directory of the generator's run.
        teacher: the network that the blocks are compared with.
        analysis: settings.
        device: of all networks.

    Raises:
        MissingFileError: if a checkpoint or the teacher's weights are missing.
        UserError: if the run is not a generator's, or there are too few images.
    """
    pipeline = GenerationPipeline.from_run(run).to(device)
    generator = pipeline.network
    teacher.prepare(device)
    found = LayerStatistics(generator.depth, device, analysis.k, analysis.unit_rows)
    batches = _generated(pipeline, analysis) if analysis.source == "generated" else _validation(pipeline, analysis)
    first = 0
    with torch.inference_mode(), full_precision(device):
        for images, labels, tokens in batches:
            (features,) = teacher.features(images, full_precision=True)
            found.update(generator.states(tokens, labels, analysis.time, first), features.patches.mean((1, 2)))
            if analysis.probe:
                null = torch.full_like(labels, generator.num_classes)
                found.update_probe(generator.states(tokens, null, analysis.time, first), labels)
            first += len(labels)
    time = analysis.time if generator.models == "latents" else None
    curves = found.compute()
    if not isfinite(curves.sts[0]):
        raise UserError(f"the blocks of {run} have outputs that are not finite: its weights are broken, train it again")
    record = layers_record(curves, teacher.identity, analysis.source, time, _aligned(run, generator.depth))
    return {**record, "origin": pipeline.origin, "versions": versions("torch", "lightning"), "commit": commit()}


def teacher_of(run: Path, name: str | None = None, weights: str | None = None) -> Teacher:
    """Build the teacher; by default the high-level one that the run's preset trains, or else DINOv2-B.

    Raises:
        UserError: if the name is unknown.
    """
    preset = preset_of(run) if name is None else ""
    if name is None and (PRESETS / preset / "teacher_high.yaml").exists():
        return Teacher("stand_in", weights or f"runs/{preset}/teacher/high.safetensors")
    return Teacher(name or PUBLISHED, weights)


def _validation(pipeline: GenerationPipeline, analysis: Analysis) -> Iterator[Batch]:
    """Validation images of the tokenizer's run, and their tokens."""
    run = Path(pipeline.origin["tokenizer"]["run"])
    data = images_of(run, pipeline.tokenizer.image_size)
    codec = FrozenCodec(lambda: pipeline.tokenizer, pipeline.sub_codes)
    device = pipeline.tokenizer.last_layer.device
    for batch in batches_of(data, "validation", analysis.max_images):
        images = batch["image"].to(device)
        yield images, batch["label"].to(device), codec.encode(images, pipeline.network.models)


def _generated(pipeline: GenerationPipeline, analysis: Analysis) -> Iterator[Batch]:
    """Tokens drawn by the generator, of all classes in turn, and the images that they decode to."""
    device = pipeline.tokenizer.last_layer.device
    labels = (torch.arange(analysis.max_images) % pipeline.num_classes).to(device)
    rules = pipeline.rules(Guidance(guidance=analysis.guidance))
    for start in track(range(0, len(labels), analysis.batch_size), "samples, batches"):
        batch = labels[start : start + analysis.batch_size]
        tokens = pipeline.draw(batch, rules, analysis.seed, start)
        images = from_uint8(pipeline.decode(tokens).permute(0, 3, 1, 2).contiguous())
        yield images, batch, tokens


def _aligned(run: Path, depth: int) -> int | None:
    """The block that training aligned with a teacher."""
    section = Checkpoint.open(run).model.get("alignment")
    if not isinstance(section, dict):
        return None
    given = section.get("init_args", section).get("depth")
    if given is not None and not isinstance(given, int):
        raise UserError(f"{run} records alignment.depth as {given!r}, and it numbers a block: train the run again")
    return aligned_block(given, depth)


def work(given: Namespace) -> None:
    """Measure every run, write its files, and print a table; draw all runs in one plot if a path is given."""
    analysis = Analysis(
        source=given.source,
        max_images=given.max_images,
        k=given.k,
        time=given.time,
        probe=given.probe,
        guidance=given.guidance,
        seed=given.seed,
        batch_size=given.batch_size,
        unit_rows=not given.raw_rows,
    )
    found: dict[str, Layers] = {}
    for directory in given.run:
        teacher = teacher_of(directory, given.teacher, given.teacher_weights)
        record = analyse(directory, teacher, analysis, best_device())
        name = f"{directory.parent.name}/{directory.name}"
        found[name] = record
        for table in tables.layers(record):
            print_table(f"{name}: {table.caption}", table.head, table.rows)
        path = save(directory, record)
        print(f"all results: {path}, plotted in {path.with_suffix('.png')}")
    if given.picture is not None:
        save_png(given.picture, draw_layers(found))


def save(directory: Path, record: Layers) -> Path:
    """Write `layers.json` and `layers.png` into a run, `generated_layers.…` for generated tokens."""
    path = directory / (LAYERS if record["source"] == "validation" else f"generated_{LAYERS}")
    records.write(path, record)
    save_png(path.with_suffix(".png"), draw_layers({"": record}))
    return path


def main(arguments: list[str] | None = None) -> None:
    """Run the program."""
    parser = new_parser("commands.layers", __doc__)
    parser.add_argument("--run", type=Path, nargs="+", required=True, help="runs of generators, one plot each")
    parser.add_argument("--source", choices=("validation", "generated"), default="validation", help="of the images")
    parser.add_argument("--teacher", help="dinov2_base …; by default the preset's stand-in, or else dinov2_base")
    parser.add_argument("--teacher-weights", help="file of the teacher; by default the one of `make weights`")
    parser.add_argument("--max-images", type=int, default=2048, help="most images; memory grows with their square")
    parser.add_argument("--k", type=int, default=10, help="neighbours of CKNNA")
    parser.add_argument("--raw-rows", action="store_true", help="CKNNA of features as they are, as iFSQ's code has it")
    parser.add_argument("--time", type=float, default=0.5, help="time of a flow between 0, noise, and 1, data")
    parser.add_argument("--probe", action="store_true", help="also fit linear probes for the class")
    parser.add_argument("--guidance", type=float, default=1.0, help="of generated tokens; 1 is none")
    parser.add_argument("--seed", type=int, default=0, help="of generated tokens")
    parser.add_argument("--batch-size", type=int, default=100, help="generated images at a time")
    parser.add_argument("--picture", type=Path, help="one more plot, of all runs")
    run(parser, work, arguments)


if __name__ == "__main__":
    main()
