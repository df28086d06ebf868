"""Fréchet distance over training FLOPs: `python -m commands.curve --curve AR runs/digits/llamagen_ifsq/ifsq`.

Samples and measures every checkpoint that a run has kept (callbacks.KeptCheckpoints) and the last one, as a guidance
sweep does (iFSQ Fig. 4). A checkpoint measured with the same settings is not sampled again.
`--curve NAME RUN [RUN …]` is given once for each curve; its runs are seeds. Writes `curve.json` and `curve.png`.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from statistics import fmean

from artifacts.provenance import commit
from artifacts.run_files import CURVE, Curve, CurvePoint, CurveRun
from callbacks.measure.plots import new_plot, render
from commands.comparison import Comparison, add_arguments
from commands.compute import FULL, HALF, compute_of, images_trained
from commands.program import new_parser, print_table, run
from commands.sweep import DISTANCE, Plan, add_sampling_arguments, labels_of, metric_of, rules_of, sweep
from polytoken import records
from polytoken.errors import UserError
from polytoken.images import save_png
from polytoken.loading import CHECKPOINTS, Checkpoint, checkpoint_path
from polytoken.pipeline import GenerationPipeline
from polytoken.sampling import Guidance

MEASURED = "kept.json"  # in a run: the metrics of its kept checkpoints, in the format of sweep.json


def kept_checkpoints(directory: Path) -> Iterator[Checkpoint]:
    """Checkpoints that a run has kept, by step, and its last one.

    Raises:
        MissingFileError: if it has none.
        UserError: if one is of another model.
    """
    paths = [*(directory / CHECKPOINTS).glob("step_*.ckpt"), checkpoint_path(directory)]
    found = {checkpoint.step: checkpoint for checkpoint in map(Checkpoint.open, paths)}
    last = Checkpoint.open(directory)
    for checkpoint in found.values():
        if checkpoint.model != last.model:
            raise UserError(f"{checkpoint.path} is of another model than {last.path}: move it out of the run")
    yield from (found[step] for step in sorted(found))


def curve_of(name: str, directory: Path, given: Namespace, comparison: Comparison) -> CurveRun:
    """Measure the kept checkpoints of a run.

    Args:
        name: of the curve.
        directory: of the run.
        given: options of the program; of the rules of samplers, those of the generator's family.
        comparison: the network, and the images to compare with.

    Raises:
        MissingFileError: if the run has no checkpoint.
        UserError: if it is not a generator's, or its images do not fit the comparison.
    """
    points: list[CurvePoint] = []
    for checkpoint in kept_checkpoints(directory):
        compute, images = compute_of(checkpoint, not given.full_attention), images_trained(checkpoint)
        generator = GenerationPipeline.from_run(checkpoint.path, given.tokenizer).to(comparison.extractor.device)
        plan = Plan(labels_of(given), _rules(given, generator), given.seed)
        entries = sweep(generator, [given.guidance], plan, comparison, directory / MEASURED)
        entry = next(entry for entry in entries if entry["guidance"] == given.guidance)
        flops = float(compute.training * images)
        points.append({"step": checkpoint.step, "images": images, "training_flops": flops, "metrics": entry["metrics"]})
    return {
        "name": name,
        "run": str(directory),
        "forward_flops": float(compute.forward),
        "training_flops": float(compute.training),
        "points": points,
    }


def _rules(given: Namespace, generator: GenerationPipeline) -> Guidance:
    """The options that are rules of the generator's family: one plot may show both families."""
    own, settings = generator.network.sampler_type, asdict(rules_of(given))
    names = [field.name for field in fields(own) if settings[field.name] is not None]
    return own(**{name: settings[name] for name in names})


def distances(one: CurveRun) -> list[tuple[float, float]]:
    """Training FLOPs and Fréchet distance of the points that have one."""
    found = [(point["training_flops"], metric_of(point, DISTANCE)) for point in one["points"]]
    return [(flops, metric[1]) for flops, metric in found if metric is not None and metric[1] is not None]


def draw(runs: Sequence[CurveRun], path: Path) -> None:
    """Plot the distance over training FLOPs, logarithmic; thin lines are runs, the thick one of a name their mean.

    Runs of a name that were not measured at the same FLOPs have no mean.
    """
    plot, axes = new_plot(1, size=5.5)
    panel = axes[0][0]
    for number, name in enumerate(dict.fromkeys(one["name"] for one in runs)):
        lines = [distances(one) for one in runs if one["name"] == name]
        has_mean = len({tuple(flops for flops, _ in line) for line in lines}) == 1  # seeds of one length
        for line in lines:
            label = None if has_mean or line is not lines[0] else name
            panel.plot(*zip(*line, strict=True), color=f"C{number}", alpha=0.35, linewidth=1, marker=".", label=label)
        if has_mean:
            means = [(column[0][0], fmean(value for _, value in column)) for column in zip(*lines, strict=True)]
            panel.plot(*zip(*means, strict=True), color=f"C{number}", marker="o", markersize=4, label=name)
    panel.set(xlabel="training FLOPs", ylabel=_distance_name(runs), xscale="log", yscale="log")
    panel.legend()
    panel.grid(alpha=0.3, which="both")
    save_png(path, render(plot))


def _distance_name(runs: Sequence[CurveRun]) -> str:
    found = metric_of(runs[0]["points"][0], DISTANCE)
    return found[0] if found else "distance"


def show(runs: Sequence[CurveRun]) -> None:
    """Print a row per checkpoint."""
    rows = [
        [one["name"], one["run"], f"{point['step']:,}", f"{point['training_flops']:.4g}", f"{distance[1]:.4g}"]
        for one in runs
        for point in one["points"]
        if (distance := metric_of(point, DISTANCE)) is not None
    ]
    print_table("Distance over training FLOPs", ["curve", "run", "step", "FLOPs", _distance_name(runs)], rows, left=2)


def measure(given: Namespace) -> Curve:
    """Measure all runs, and write `curve.json` and `curve.png`; returns the content of the former."""
    for name, *directories in given.curve:
        if not directories:
            raise UserError(f"--curve {name} names no run: give a name, then its runs, --curve AR runs/digits/…")
    comparison = Comparison.of(given)
    runs = [
        curve_of(name, Path(directory), given, comparison)
        for name, *directories in given.curve
        for directory in directories
    ]
    if not any(map(distances, runs)):
        raise UserError(
            f"no checkpoint of {runs[0]['run']} has a distance to plot: its images are broken, train it again"
        )
    content: Curve = {"runs": runs, "attention": FULL if given.full_attention else HALF, "commit": commit()}
    path = (given.output or Path(runs[0]["run"])) / CURVE
    records.write(path, content)
    draw(runs, path.with_suffix(".png"))
    return content


def work(given: Namespace) -> None:
    """Measure, write the files, and print a table."""
    show(measure(given)["runs"])
    path = (given.output or Path(given.curve[0][1])) / CURVE
    print(f"all results: {path}, plotted in {path.with_suffix('.png')}")


def options() -> ArgumentParser:
    """The options of the program."""
    parser = new_parser("commands.curve", __doc__)
    parser.add_argument(
        "--curve", nargs="+", action="append", required=True, metavar=("NAME", "RUN"), help="a curve and its runs"
    )
    parser.add_argument("--output", type=Path, help="directory of the two files; by default the first run")
    parser.add_argument("--guidance", type=float, default=1.0, help="scale of the samples; 1 is none")
    parser.add_argument("--full-attention", action="store_true", help="count causal attention in full, not as half")
    parser.add_argument("--tokenizer", type=Path, help="run of their tokenizer; by default the one of their training")
    add_sampling_arguments(parser)
    add_arguments(parser)
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Run the program."""
    run(options(), work, arguments)


if __name__ == "__main__":
    main()
