"""Which guidance suits a generator: `python -m commands.sweep --run runs/digits/stage2/fq_dual --guidance 1 1.5 2`.

Loads the generator once, samples the same images once a scale, and measures them without writing them to disk. After
each scale the run's `sweep.json` has its figures; a scale that is there with the same weights and settings is not
sampled again. At the end `sweep.png` shows Fréchet distance and score over the scales. See docs/evaluation.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from artifacts.metrics import PACKAGES
from artifacts.provenance import commit, versions
from artifacts.run_files import Sweep
from callbacks.measure.plots import new_figure, render
from commands.measuring import Measuring, add_arguments
from datamodules.labels import LabelDataModule
from polytoken import records
from polytoken.errors import UserError
from polytoken.files import replacing
from polytoken.metrics.generation import begin, figures_of
from polytoken.pipeline import GenerationPipeline
from polytoken.sampling import CategoricalSampler

Entry = dict[str, Any]  # guidance, figures, settings and where all of it comes from


@dataclass(frozen=True)
class Plan:
    """What is the same at every scale.

    Args:
        labels: which classes, how many images, and how many at a time.
        sampler: all but the guidance.
        seed: of the images.
    """

    labels: LabelDataModule
    sampler: CategoricalSampler
    seed: int = 0


def sweep(
    generator: GenerationPipeline,
    scales: Iterable[float],
    plan: Plan,
    measuring: Measuring,
    path: Path,
    console: Console,
) -> list[Entry]:
    """Sample and measure the scales that ``path`` has not yet; all of its entries with these settings, by scale.

    Args:
        generator: on its device.
        scales: of classifier-free guidance; 1 is none.
        plan: what stays the same.
        measuring: the network that looks at the images, and what they are compared with.
        path: ``sweep.json``.
        console: where progress is shown.

    Raises:
        FileNotFoundError: if the reference is missing.
        ValueError: if the generator's images or classes do not fit, or ``path`` is no sweep's.
    """
    settings = _settings(generator, plan, measuring)
    settings = records.decode(records.encode(settings), dict[str, Any], "settings")  # as read from the file
    entries = _read(path)
    done = {entry["guidance"] for entry in entries if entry["settings"] == settings}
    target = None
    with Progress(console=console, transient=True) as progress:
        for scale in sorted(set(scales) - done):
            sampler = replace(plan.sampler, guidance=scale)
            task = progress.add_task(f"guidance {scale:g}", total=plan.labels.num_images)
            labels = torch.from_numpy(plan.labels.labels(generator.num_classes))
            measured = None
            for start in range(0, len(labels), plan.labels.batch_size):
                batch = labels[start : start + plan.labels.batch_size]
                images = generator.images(batch.to(measuring.extractor.device), sampler, plan.seed, start)
                if target is None:  # before this image nobody knows the size
                    size = (images.shape[1], images.shape[2])
                    measuring.check(size, generator.num_classes, generator.class_names, "the generator")
                    target = measuring.target(size)
                measured = measured or begin(measuring.extractor, len(labels), keep_rows=target.rows is not None)
                measured.add(images.permute(0, 3, 1, 2), batch)
                progress.advance(task, len(batch))
            assert measured is not None and target is not None  # there is an image at least
            found = measured.compute()
            entries.append(
                {
                    "guidance": scale,
                    "figures": figures_of(found, target, device=measuring.extractor.device),
                    "notes": [*target.notes, *filter(None, (found.features.shortage,))],
                    "settings": settings,
                    "origin": generator.origin,
                    "versions": versions(*PACKAGES),
                    "commit": commit(),
                }
            )
            records.write(path, {"scales": entries})
    return sorted((entry for entry in entries if entry["settings"] == settings), key=lambda entry: entry["guidance"])


def _settings(generator: GenerationPipeline, plan: Plan, measuring: Measuring) -> dict[str, Any]:
    """What the figures depend on besides the guidance; runs by what they hold, as they may be spelt in many ways."""
    labels = {key: value for key, value in plan.labels.settings().items() if key != "part_size"}
    return {
        "generator_sha256": generator.origin["generator"]["sha256"],
        "tokenizer_fingerprint": generator.origin["tokenizer"]["fingerprint"],
        "sampler": {key: value for key, value in asdict(plan.sampler).items() if key != "guidance"},
        "seed": plan.seed,
        "precision": "float32",
        **labels,
        **measuring.settings(),
    }


def _read(path: Path) -> list[Entry]:
    known = records.read_derived(path, Sweep)
    return known["scales"] if known else []


def figure_of(entry: Entry, *kinds: str) -> tuple[str, float] | None:
    """Name and value of the first figure that is called one of these, before the slash."""
    for name, figure in entry["figures"].items():
        if name.split("/")[0] in kinds:
            return name, figure["value"]
    return None


def best(entries: Sequence[Entry]) -> tuple[float | None, float | None]:
    """The scales of the least distance and of the greatest score."""
    distances = {entry["guidance"]: found[1] for entry in entries if (found := figure_of(entry, "gfd", "gfid"))}
    scores = {entry["guidance"]: found[1] for entry in entries if (found := figure_of(entry, "gis"))}
    least = min(distances, key=distances.__getitem__) if distances else None
    return least, max(scores, key=scores.__getitem__) if scores else None


def draw(entries: Sequence[Entry], path: Path) -> None:
    """Write distance and score over the scales, the best of each marked."""
    figure, axes = new_figure(2, size=4.0)
    for plot, kinds, scale in zip(axes[0], (("gfd", "gfid"), ("gis",)), best(entries), strict=True):
        points = [(entry["guidance"], *found) for entry in entries if (found := figure_of(entry, *kinds))]
        if not points or scale is None:
            plot.set_axis_off()
            continue
        scales, names, values = zip(*points, strict=True)
        plot.plot(scales, values, marker="o", markersize=4)
        value = values[scales.index(scale)]
        plot.plot([scale], [value], marker="*", markersize=15, color="tab:red", linestyle="none")
        plot.set(title=f"{names[0]}: best {value:.4g} at {scale:g}", xlabel="guidance")
        plot.margins(0.08)
        plot.grid(alpha=0.3)
    with replacing(path) as unfinished:
        Image.fromarray(render(figure)).save(unfinished, format="png")


def show(entries: Sequence[Entry], console: Console) -> None:
    """Print a row a scale."""
    about = entries[0]["settings"]
    first = entries[0]["figures"]
    against = next((figure["reference"] for figure in first.values() if "reference" in figure), "nothing")
    table = Table(title=f"{about['num_images']} samples a scale by {about['extractor']}; distances to {against}")
    names = list(first)
    for column in ("guidance", *(name.split("/")[0] for name in names)):
        table.add_column(column, justify="right")
    least, greatest = best(entries)
    for entry in entries:
        values = []
        for name in names:
            value = entry["figures"][name]["value"]
            marked = entry["guidance"] == (greatest if name.startswith("gis") else least)
            star = " *" if marked and name.startswith(("gfd", "gfid", "gis")) else ""
            values.append("–" if value is None else f"{value:.4g}{star}")
        table.add_row(f"{entry['guidance']:g}", *values)
    console.print(table)
    for note in dict.fromkeys(note for entry in entries for note in entry["notes"]):
        console.print(f"note: {note}")


def main(arguments: list[str] | None = None) -> None:
    """Sweep, write `sweep.json` and `sweep.png`, and print a table; exits with code 2 on bad input."""
    parser = argparse.ArgumentParser(prog="python -m commands.sweep", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--run", type=Path, required=True, help="run of a generator: runs/digits/stage2/fq_dual")
    parser.add_argument("--guidance", type=float, nargs="+", required=True, help="scales; 1 is none")
    parser.add_argument("--num-images", type=int, default=500, help="samples a scale")
    parser.add_argument("--classes", choices=("balanced", "random"), default="balanced", help="of the samples")
    parser.add_argument("--temperature", type=float, default=1.0, help="divides the logits")
    parser.add_argument("--top-k", type=int, help="most likely codes that are drawn from; by default all")
    parser.add_argument("--top-p", type=float, default=1.0, help="share of the probability that is drawn from")
    parser.add_argument("--seed", type=int, default=0, help="of the images, and of random classes")
    parser.add_argument("--batch-size", type=int, default=100, help="images at a time")
    parser.add_argument("--tokenizer", type=Path, help="run of its tokenizer; by default where it was in training")
    add_arguments(parser)
    given = parser.parse_args(arguments)
    console = Console()
    try:
        labels = LabelDataModule(given.num_images, given.classes, given.batch_size, given.batch_size, given.seed)
        sampler = CategoricalSampler(temperature=given.temperature, top_k=given.top_k, top_p=given.top_p)
        for scale in given.guidance:
            replace(sampler, guidance=scale)  # a wrong one is said before anything is loaded
        measuring = Measuring.chosen(given)
        generator = GenerationPipeline.from_run(given.run, given.tokenizer).to(measuring.extractor.device)
        directory = given.run if given.run.is_dir() else given.run.parent.parent
        path = directory / "sweep.json"
        entries = sweep(generator, given.guidance, Plan(labels, sampler, given.seed), measuring, path, console)
    except (UserError, FileNotFoundError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    draw(entries, path.with_suffix(".png"))
    show(entries, console)
    print(f"all of it: {path}, drawn in {path.with_suffix('.png')}")


if __name__ == "__main__":
    main()
