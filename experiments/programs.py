"""Stages of an experiment that train nothing: `python -m experiments.programs PROGRAM … --output DIRECTORY`.

Each writes its metrics into `metrics.json` of the directory, as the validation at the end of a fit does, and then the
marker of its end.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from artifacts.completion import begin, finish
from artifacts.metrics import merge_section
from artifacts.origin import origin_of
from artifacts.provenance import commit, machine
from artifacts.run_files import CODES, METRICS, PROBES, RECOVERY, ZERO_SHOT, Measured, Metrics
from commands.program import best_device, new_parser, run, whole_number
from polytoken import records
from polytoken.errors import UserError

if TYPE_CHECKING:
    from commands.layers import Analysis
    from polytoken.metrics.perturbation import Perturbation
    from polytoken.metrics.recovery import Recovery

POINTS = 500_000  # as many as iFSQ draws
LEVELS = 17  # the paper's 4 bits
SCALES = (1.0, 1.5, 2.0, 3.0, 5.0)  # of guidance; the papers choose it for each row


def probe(directory: Path, max_train: int | None = None) -> tuple[Metrics, int]:
    """Accuracy of the probes of a tokenizer's features; also writes its `probes.json`.

    Args:
        directory: The tokenizer's run.
        max_train: Maximum number of training images, evenly chosen; None means all.

    Returns:
        `probe/<linear, nearest_class_mean or nearest_neighbours>/<feature>`, and the number of images.
    """
    from commands import probe as program

    found = program.probe(directory, max_train=max_train, device=best_device())
    records.write(directory / PROBES, found)
    named: Metrics = {f"probe/{one['probe']}/{one['feature']}": one["value"] for one in found["probes"]}
    for name in [name for name in named if name.endswith("/0")]:  # one subspace is all of them
        named.setdefault(f"{name.removesuffix('0')}all", named[name])
    return named, found["n_validation"]


def codes(directory: Path, perturbation: Perturbation, max_images: int | None = None) -> tuple[Metrics, int]:
    """Bits, use at each position and distance after perturbation of a tokenizer's codes; also writes its `codes.json`.

    Args:
        directory: The tokenizer's run.
        perturbation: Replacement of codes.
        max_images: Maximum number of validation images, evenly spread; None means all.

    Returns:
        `val/pfd/judge`, or `val/pfid/inception` and so on by the preset's network, `val/code_bits`,
        `val/position_usage/<i>` and `val/position_perplexity/<i>`; and the number of images.
    """
    from commands import codes as program

    options = Namespace(preset=None, runs=Path("runs"), extractor=None, weights=None)
    network = program.network_of(directory, options)
    found = program.codes(directory, network, perturbation, max_images)
    records.write(directory / CODES, found)
    for note in found["notes"]:
        print(f"note: {note}")
    return program.metrics_of(found), found["n"]


def recovery(directory: Path, training: Recovery, factor: float) -> tuple[Metrics, int]:
    """Use of a tokenizer's codes after a wrong scale and some training; also writes its `recovery.json`.

    Args:
        directory: The tokenizer's run.
        training: Of the codebooks.
        factor: Wrong scale of the codebooks; the other one is its inverse.

    Returns:
        `val/recovery/<i>`, and its parts `val/recovery_smaller/<i>` and `val/recovery_larger/<i>`; and the number of
        images.
    """
    from commands import recovery as program

    found = program.recovery(directory, training, factor, device=best_device())
    records.write(directory / RECOVERY, found)
    for note in found["notes"]:
        print(f"note: {note}")
    return program.metrics_of(found), found["n"]


def zero_shot(directory: Path, classes: Path, max_images: int | None = None) -> tuple[Metrics, int]:
    """Zero-shot accuracy by a tokenizer's decoded features; also writes its `zero_shot.json`.

    Args:
        directory: The tokenizer's run.
        classes: File of class vectors.
        max_images: Maximum number of validation images, evenly spread; None means all.

    Returns:
        `zero_shot/<top1 or top5>/<decoded, foundation or block>`, the last for a tokenizer that reads an earlier block
        than the foundation model's last; and the number of images.
    """
    from commands import zero_shot as program

    found = program.zero_shot(directory, classes, max_images, best_device())
    records.write(directory / ZERO_SHOT, found)
    names = {program.DECODED: "decoded", program.UNTOUCHED: "foundation"}
    metrics: Metrics = {}
    for row in found["rows"]:
        name = names.get(row["features"], "block")
        metrics |= {f"zero_shot/top1/{name}": row["top1"], f"zero_shot/top5/{name}": row["top5"]}
    return metrics, found["n"]


def fidelity(directory: Path, words: int) -> tuple[Metrics, int]:
    """Text and face fidelity of a tokenizer; also writes its `fidelity.json` and pictures.

    Args:
        directory: The tokenizer's run.
        words: Number of words a size.

    Returns:
        `fidelity/<text or faces>/<measure>`, means over sizes, and the same with `/<pixels>` of each size; and the
        number of words a size.
    """
    from artifacts.fidelity import by_size, means
    from commands import fidelity as program
    from polytoken.metrics.extractors import load_extractor
    from polytoken.teachers.efficientnet import MEASURES

    device = best_device()
    found = program.measure(
        directory, words, new_extractor=lambda: load_extractor(MEASURES, None, device), device=device
    )
    program.save(directory, found)
    metrics: Metrics = {f"fidelity/{name}": value for name, value in means(found.result).items()}
    for name, values in by_size(found.result).items():
        metrics |= {f"fidelity/{name}/{pixels}": value for pixels, value in values.items()}
    return metrics, words


def dependency(directory: Path, groups: int) -> tuple[Metrics, int]:
    """Mutual information of stored sub-codes of training images; also writes `dependency.json` and its plot.

    Args:
        directory: The directory of the stores.
        groups: Maximum number of groups of codes of a codebook.

    Returns:
        `dependency/neighbours/<i>` and `dependency/branches/<i>_<j>` in bits, means over scales, and the mean of each
        kind, `dependency/<kind>`; and the number of images.
    """
    from artifacts.token_store import TokenStore
    from commands import dependency as program

    found = program.measure(TokenStore.open(directory / "train"), groups)
    program.save(directory, found)
    metrics: Metrics = {f"dependency/{kind}": bits for kind, bits in program.means(found).items()}
    for one in found["entries"]:
        if one.scale is None:
            names = one.sub_codes[:1] if one.kind == "neighbours" else one.sub_codes
            metrics[f"dependency/{one.kind}/{'_'.join(map(str, names))}"] = one.bits
    return metrics, found["images"]


def normal(alpha: float, points: int = POINTS) -> tuple[Metrics, int]:
    """Uniformity of 2σ(αx) − 1 for standard normal x (iFSQ Fig. 2), computed at evenly spaced quantiles.

    Returns:
        `ks`, `rmse_uniform`, and `entropy_ratio` of 17 levels by the published rounding; and the number of points.
    """
    from polytoken.metrics.uniformity import entropy_ratio, ks_to_uniform, rmse_to_uniform
    from polytoken.quantizers.finite_scalar import bound, vectors_to_digits

    quantiles = (torch.arange(points, dtype=torch.float64) + 0.5) / points
    values = bound(torch.special.ndtri(quantiles), alpha)
    counts = torch.bincount(vectors_to_digits(values, torch.tensor(LEVELS)), minlength=LEVELS)
    metrics = {
        "ks": ks_to_uniform(values),
        "rmse_uniform": rmse_to_uniform(values),
        "entropy_ratio": entropy_ratio(counts),
    }
    return {name: float(value) for name, value in metrics.items()}, points


def layers(directory: Path, analysis: Analysis) -> tuple[Metrics, int]:
    """Similarities of a generator's blocks by teacher forcing; also writes its `layers.json` and `layers.png`.

    Args:
        directory: The generator's run.
        analysis: Images, neighbours of CKNNA, and time of a flow.

    Returns:
        `layers/<curve>/<block>`, `layers/correlation` and `layers/peak`; and the number of images.
    """
    from callbacks.measure.layer_analysis import layer_metrics
    from commands import layers as program

    found = program.analyse(directory, program.teacher_of(directory), analysis, best_device())
    program.save(directory, found)
    return layer_metrics(found), found["n"]


def curve(directory: Path, num_images: int, guidance: float, steps: int | None) -> tuple[Metrics, int]:
    """Metrics of the samples of each kept checkpoint of a generator, and its FLOPs; also writes its `curve.json`.

    Args:
        directory: The generator's run.
        num_images: Number of samples a checkpoint.
        guidance: Scale of classifier-free guidance; 1 is none.
        steps: Time grid of a flow; None means 250.

    Returns:
        `curve/<number of the checkpoint, from 1>/<metric>`, `compute/forward` (GFLOP an image) and `compute/total`
        (PFLOP of the whole training); and the number of samples a checkpoint.
    """
    from commands import curve as program

    options = ["--curve", "run", str(directory), "--guidance", str(guidance), "--num-images", str(num_images)]
    options += [*_comparison(directory), *(["--steps", str(steps)] if steps else [])]
    steps_kept = [checkpoint.step for checkpoint in program.kept_checkpoints(directory)]
    if len({after - before for before, after in pairwise([0, *steps_kept])}) > 1:
        raise UserError(
            f"{directory} has checkpoints of the steps {', '.join(map(str, steps_kept))}, and a curve's numbers stand "
            "for equal parts of training: move those that KeptCheckpoints has not written out of it, or train it again"
        )
    (found,) = program.measure(program.options().parse_args(options))["runs"]
    metrics: Metrics = {
        f"curve/{number}/{name}": metric["value"]
        for number, point in enumerate(found["points"], 1)
        for name, metric in point["metrics"].items()
    }
    metrics["compute/forward"] = found["forward_flops"] / 1e9
    metrics["compute/total"] = found["points"][-1]["training_flops"] / 1e15
    return metrics, num_images


def sweep(directory: Path, num_images: int, steps: int | None) -> tuple[Metrics, int]:
    """Samples of a generator at several guidance scales; also writes its `sweep.json` and `sweep.png`.

    Args:
        directory: The generator's run.
        num_images: Number of samples a scale.
        steps: Time grid of a flow; None for a generator of codes, or the default.

    Returns:
        `sweep/guidance`, the scale of the least Fréchet distance, `sweep/<metric>` at it, and `guidance_1/<metric>`
        without guidance; and the number of samples a scale.
    """
    from commands import sweep as program

    options = ["--run", str(directory), "--guidance", *map(str, SCALES), "--num-images", str(num_images)]
    options += [*_comparison(directory), *(["--steps", str(steps)] if steps else [])]
    entries, _ = program.measure(program.options().parse_args(options))
    entries = [entry for entry in entries if entry["guidance"] in SCALES]  # `make sweep` measures others as well
    by_scale = {entry["guidance"]: entry["metrics"] for entry in entries}
    chosen, _ = program.best(entries)
    metrics: Metrics = {f"guidance_1/{name}": metric["value"] for name, metric in by_scale[1.0].items()}
    if chosen is not None:
        metrics["sweep/guidance"] = chosen
        metrics |= {f"sweep/{name}": metric["value"] for name, metric in by_scale[chosen].items()}
    return metrics, num_images


def _comparison(directory: Path) -> list[str]:
    """Options of the network and the images that samples of a run are compared with."""
    from commands.preset import own_network, preset_of, training_reference

    preset = preset_of(directory)
    reference = [] if own_network(preset) else ["--reference", str(training_reference(preset))]
    return ["--preset", preset, *reference]


def measurement(options: Namespace) -> Callable[[], tuple[Metrics, int]]:
    """The measurement that these options ask for; raises UserError for a setting that is known to be out of range."""
    match options.command:
        case "probe":
            return partial(probe, options.run, options.max_train)
        case "codes":
            from polytoken.metrics.perturbation import Perturbation

            perturbation = Perturbation(options.alpha, options.beta, options.delta)
            return partial(codes, options.run, perturbation, options.max_images)
        case "recovery":
            from commands.recovery import check_factor
            from polytoken.metrics.recovery import Recovery

            check_factor(options.factor)
            return partial(recovery, options.run, Recovery(options.steps, options.learning_rate), options.factor)
        case "zero_shot":
            return partial(zero_shot, options.run, options.classes, options.max_images)
        case "layers":
            from commands.layers import Analysis

            analysis = Analysis(max_images=options.max_images, k=options.k, time=options.time)
            return partial(layers, options.run, analysis)
        case "curve":
            return partial(curve, options.run, options.num_images, options.guidance, options.steps)
        case "sweep":
            return partial(sweep, options.run, options.num_images, options.steps)
        case "fidelity":
            return partial(fidelity, options.run, options.words)
        case "dependency":
            return partial(dependency, options.store, options.groups)
        case "normal":
            return partial(normal, options.alpha)
    raise AssertionError(f"{options.command} is a command of the parser, and has no measurement")


def _work(options: Namespace) -> None:
    measure = measurement(options)
    begin(options.output)
    origin = origin_of([], [], {name: str(value) for name, value in vars(options).items()}, options.output)
    metrics, n = measure()
    section: Measured = {"metrics": metrics, "n": n, "machine": machine(), "commit": commit()}
    merge_section(options.output / METRICS, "validate", section)
    finish(options.output, options.command, str(options), [options.output / METRICS], origin=origin)


def parser() -> ArgumentParser:
    """The command line: a command for each program."""
    main_parser = new_parser("experiments.programs", __doc__)
    commands = main_parser.add_subparsers(dest="command", required=True)
    for_probe = commands.add_parser("probe", help="class information in a tokenizer's vectors")
    for_probe.add_argument("--run", type=Path, required=True, help="directory of the tokenizer's run")
    for_probe.add_argument("--max-train", type=whole_number(2), help="maximum number of training images (default: all)")
    for_codes = commands.add_parser("codes", help="bits, use at each position, and pFID of a tokenizer's codes")
    for_codes.add_argument("--run", type=Path, required=True, help="directory of the tokenizer's run")
    for_codes.add_argument("--alpha", type=float, default=0.5, help="share of the codes that are replaced")
    for_codes.add_argument("--beta", type=float, default=1.0, help="share of the images in which they are")
    for_codes.add_argument("--delta", type=int, default=100, help="nearest codes that a replacement is drawn from")
    for_codes.add_argument(
        "--max-images", type=whole_number(2), help="maximum number of validation images (default: all)"
    )
    for_recovery = commands.add_parser("recovery", help="use of codes after a wrong scale and some training")
    for_recovery.add_argument("--run", type=Path, required=True, help="directory of the tokenizer's run")
    for_recovery.add_argument("--factor", type=float, default=100.0, help="wrong scale; the other one is its inverse")
    for_recovery.add_argument("--steps", type=int, default=500, help="steps of training")
    for_recovery.add_argument("--learning-rate", type=float, default=1e-3, help="constant rate of Adam")
    for_zero_shot = commands.add_parser("zero_shot", help="classification by decoded features and names of classes")
    for_zero_shot.add_argument("--run", type=Path, required=True, help="directory of the tokenizer's run")
    for_zero_shot.add_argument("--classes", type=Path, required=True, help="file of class vectors")
    for_zero_shot.add_argument(
        "--max-images", type=whole_number(1), help="maximum number of validation images (default: all)"
    )
    for_fidelity = commands.add_parser("fidelity", help="legibility of words, and likeness of faces")
    for_fidelity.add_argument("--run", type=Path, required=True, help="directory of the tokenizer's run")
    for_fidelity.add_argument("--words", type=whole_number(1), default=200, help="number of words a size")
    for_dependency = commands.add_parser("dependency", help="mutual information of stored sub-codes")
    for_dependency.add_argument("--store", type=Path, required=True, help="directory of the stores")
    for_dependency.add_argument("--groups", type=whole_number(2), default=32, help="maximum number of groups of codes")
    for_normal = commands.add_parser("normal", help="uniformity of a bounded normal variable")
    for_normal.add_argument("--alpha", type=float, required=True, help="slope of the bound")
    for_layers = commands.add_parser("layers", help="similarity of a generator's blocks to its output and a teacher")
    for_layers.add_argument("--max-images", type=int, default=2048, help="maximum number of validation images")
    for_layers.add_argument("--k", type=int, default=10, help="neighbours of CKNNA")
    for_layers.add_argument("--time", type=float, default=0.5, help="time of a flow")
    for_curve = commands.add_parser("curve", help="metrics of the kept checkpoints of a generator")
    for_curve.add_argument("--num-images", type=whole_number(2), default=500, help="number of samples a checkpoint")
    for_curve.add_argument("--guidance", type=float, default=1.0, help="scale of the samples")
    for_curve.add_argument("--steps", type=whole_number(1), help="time grid of a flow (default: 250)")
    for_sweep = commands.add_parser("sweep", help="metrics of a generator over guidance scales")
    for_sweep.add_argument("--num-images", type=whole_number(2), default=500, help="number of samples a scale")
    for_sweep.add_argument("--steps", type=whole_number(1), help="time grid of a flow (default: 250)")
    for command in (for_layers, for_curve, for_sweep):
        command.add_argument("--run", type=Path, required=True, help="directory of the generator's run")
    for command in commands.choices.values():
        command.add_argument("--output", type=Path, required=True, help="directory of metrics.json")
    return main_parser


def main(arguments: list[str] | None = None) -> None:
    """Measure and write; exits with code 2 on bad input."""
    run(parser(), _work, arguments)


if __name__ == "__main__":
    main()
