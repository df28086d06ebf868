"""Metrics of a generator over guidance scales: `python -m commands.sweep --run RUN --guidance 1 1.5 2`.

Loads the generator once, samples the same images at each scale, and measures them without writing them to disk. After
each scale the run's `sweep.json` has its metrics; a scale measured with the same weights and settings is not sampled
again. At the end `sweep.png` shows Fréchet distance and score over the scales. See docs/evaluation.md.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from artifacts.metrics import PACKAGES
from artifacts.provenance import commit, versions
from artifacts.run_files import Sweep
from callbacks.measure.plots import new_plot, render
from commands.comparison import Comparison, add_arguments
from commands.measuring import directory_of
from commands.program import new_parser, print_table, run
from commands.progress import track
from datamodules.labels import LabelDataModule
from polytoken import records
from polytoken.images import save_png
from polytoken.metrics.image_metrics import image_metrics
from polytoken.pipeline import GenerationPipeline
from polytoken.sampling import Guidance, SamplerSettings

Entry = dict[str, Any]  # guidance, metrics, settings and their origin
DISTANCE, SCORE = ("gfd", "gfid"), ("gis",)


@dataclass(frozen=True)
class Plan:
    """Settings shared by all scales.

    Args:
        labels: classes of the images, their number and the batch size.
        sampler: all rules but the guidance.
        seed: seed of the images.
    """

    labels: LabelDataModule
    sampler: Guidance
    seed: int = 0


def sweep(
    generator: GenerationPipeline, scales: Iterable[float], plan: Plan, comparison: Comparison, path: Path
) -> list[Entry]:
    """Sample and measure the scales that ``path`` lacks; returns all of its entries with these settings, by scale.

    Args:
        generator: on its device.
        scales: scales of classifier-free guidance; 1 is none.
        plan: settings shared by the scales.
        comparison: the network, and the images to compare with.
        path: ``sweep.json``.

    Raises:
        UserError: if the reference is missing, or the generator's images or classes do not fit.
    """
    settings = _settings(generator, plan, comparison)
    settings = records.decode(records.encode(settings), dict[str, Any], "settings")  # as read from the file
    known = records.read_derived(path, Sweep)
    entries: list[Entry] = [*known["scales"]] if known else []
    done = {entry["guidance"] for entry in entries if entry["settings"] == settings}
    target = None
    for scale in sorted(set(scales) - done):
        batches = _sampled(generator, scale, plan, comparison.extractor.device)
        first = next(batches)
        if target is None:  # the size is not known before the first image
            size = (first[0].shape[2], first[0].shape[3])
            comparison.check(size, generator.num_classes, generator.class_names, "the generator")
            target = comparison.target(size)
        found = comparison.measure(chain([first], batches), plan.labels.num_images, target.rows is not None)
        entry = {
            "guidance": scale,
            "metrics": image_metrics(found, target, device=comparison.extractor.device),
            "notes": [*target.notes, *filter(None, (found.features.shortage,))],
            "settings": settings,
            "origin": generator.origin,
            "versions": versions(*PACKAGES),
            "commit": commit(),
        }
        entries.append(entry)
        records.write(path, {"scales": entries})
    return sorted((entry for entry in entries if entry["settings"] == settings), key=lambda entry: entry["guidance"])


def _sampled(
    generator: GenerationPipeline, scale: float, plan: Plan, device: torch.device
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Images uint8 (B, 3, H, W) at a scale, and their labels."""
    sampler, size = replace(plan.sampler, guidance=scale), plan.labels.batch_size
    labels = torch.from_numpy(plan.labels.labels(generator.num_classes))
    for start in track(range(0, len(labels), size), f"guidance {scale:g}, batches"):
        batch = labels[start : start + size]
        yield generator.images(batch.to(device), sampler, plan.seed, start).permute(0, 3, 1, 2), batch


def _settings(generator: GenerationPipeline, plan: Plan, comparison: Comparison) -> dict[str, Any]:
    """Everything besides the guidance that the metrics depend on; runs by their content, not by their paths."""
    labels = {key: value for key, value in plan.labels.settings().items() if key != "part_size"}
    return {
        "generator_sha256": generator.origin["generator"]["sha256"],
        "tokenizer_fingerprint": generator.origin["tokenizer"]["fingerprint"],
        "sampler": {key: value for key, value in asdict(plan.sampler).items() if key != "guidance"},
        "seed": plan.seed,
        "precision": "float32",
        **labels,
        **comparison.settings(),
    }


def metric_of(entry: Entry, kinds: Sequence[str]) -> tuple[str, float] | None:
    """Name and value of the first metric with one of these names before the slash that has a value."""
    for name, metric in entry["metrics"].items():
        if name.split("/")[0] in kinds and metric["value"] is not None:
            return name, metric["value"]
    return None


def best(entries: Sequence[Entry]) -> tuple[float | None, float | None]:
    """Scales of the smallest distance and of the highest score."""

    def scale(kinds: Sequence[str], sign: int) -> float | None:
        found = {entry["guidance"]: sign * metric[1] for entry in entries if (metric := metric_of(entry, kinds))}
        return min(found, key=found.__getitem__, default=None)

    return scale(DISTANCE, 1), scale(SCORE, -1)


def draw(entries: Sequence[Entry], path: Path) -> None:
    """Plot distance and score over the scales, with the best of each marked."""
    plot, axes = new_plot(2, size=4.0)
    for panel, kinds, scale in zip(axes[0], (DISTANCE, SCORE), best(entries), strict=True):
        points = [(entry["guidance"], *found) for entry in entries if (found := metric_of(entry, kinds))]
        if scale is None:
            panel.set_axis_off()
            continue
        scales, names, values = zip(*points, strict=True)
        value = values[scales.index(scale)]
        panel.plot(scales, values, marker="o", markersize=4)
        panel.plot([scale], [value], marker="*", markersize=15, color="tab:red", linestyle="none")
        panel.set(title=f"{names[0]}: best {value:.4g} at {scale:g}", xlabel="guidance")
        panel.margins(0.08)
        panel.grid(alpha=0.3)
    save_png(path, render(plot))


def show(entries: Sequence[Entry]) -> None:
    """Print a row per scale."""
    about, first = entries[0]["settings"], entries[0]["metrics"]
    against = next((metric["reference"] for metric in first.values() if "reference" in metric), "nothing")
    least, greatest = best(entries)

    def text(entry: Entry, name: str) -> str:
        kind, value = name.split("/")[0], entry["metrics"][name]["value"]
        marked = (kind in DISTANCE and entry["guidance"] == least) or (kind in SCORE and entry["guidance"] == greatest)
        return "–" if value is None else f"{value:.4g}{' *' if marked else ''}"

    print_table(
        f"{about['num_images']} samples per scale by {about['extractor']}; distances to {against}",
        ["guidance", *(name.split("/")[0] for name in first)],
        ([f"{entry['guidance']:g}", *(text(entry, name) for name in first)] for entry in entries),
        (note for entry in entries for note in entry["notes"]),
        left=0,
    )


def add_sampling_arguments(parser: ArgumentParser) -> None:
    """Add the options of the samples besides the guidance."""
    parser.add_argument("--num-images", type=int, default=500, help="samples per scale")
    parser.add_argument("--classes", choices=("balanced", "random"), default="balanced", help="classes of the samples")
    codes = parser.add_argument_group("rules of a generator of codes")
    codes.add_argument("--temperature", type=float, help="divisor of the logits; by default 1")
    codes.add_argument("--top-k", type=int, help="draw from the k most likely codes; by default from all")
    codes.add_argument("--top-p", type=float, help="draw from the codes with this share of probability; by default 1")
    flow = parser.add_argument_group("rules of a generator of latents")
    flow.add_argument("--steps", type=int, help="of the time grid; by default 250")
    flow.add_argument("--method", choices=("euler", "heun"), help="of integration; by default euler")
    flow.add_argument("--shift", type=float, help="of the time grid; by default 1, an even one")
    flow.add_argument(
        "--snap", action="store_true", default=None, help="move latents to the nearest points of the codebooks"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the images, and of random classes")
    parser.add_argument("--batch-size", type=int, default=100, help="images at a time")


def rules_of(given: Namespace) -> SamplerSettings:
    """Build the rules that the options of :func:`add_sampling_arguments` name; those of no option are None."""
    return SamplerSettings(
        temperature=given.temperature,
        top_k=given.top_k,
        top_p=given.top_p,
        steps=given.steps,
        method=given.method,
        shift=given.shift,
        snap=given.snap,
    )


def labels_of(given: Namespace) -> LabelDataModule:
    """Build the classes that the options of :func:`add_sampling_arguments` name."""
    return LabelDataModule(given.num_images, given.classes, given.batch_size, given.batch_size, given.seed)


def measure(given: Namespace) -> tuple[list[Entry], Path]:
    """Sweep, and write `sweep.json` and `sweep.png` into the run; returns all entries by scale, and the first file."""
    rules = rules_of(given)
    for scale in given.guidance:
        replace(rules, guidance=scale)  # a wrong scale is refused before anything is loaded
    comparison = Comparison.of(given)
    generator = GenerationPipeline.from_run(given.run, given.tokenizer).to(comparison.extractor.device)
    path = directory_of(given.run) / "sweep.json"
    plan = Plan(labels_of(given), generator.rules(rules), given.seed)
    entries = sweep(generator, given.guidance, plan, comparison, path)
    draw(entries, path.with_suffix(".png"))
    return entries, path


def work(given: Namespace) -> None:
    """Sweep, write the files, and print a table."""
    entries, path = measure(given)
    show(entries)
    print(f"all metrics: {path}, plotted in {path.with_suffix('.png')}")


def options() -> ArgumentParser:
    """The command line."""
    parser = new_parser("commands.sweep", __doc__)
    parser.add_argument("--run", type=Path, required=True, help="run of a generator: runs/digits/stage2/fq_dual")
    parser.add_argument("--guidance", type=float, nargs="+", required=True, help="scales; 1 is none")
    add_sampling_arguments(parser)
    parser.add_argument("--tokenizer", type=Path, help="run of its tokenizer; by default the one of its training")
    add_arguments(parser)
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Run the program."""
    run(options(), work, arguments)


if __name__ == "__main__":
    main()
