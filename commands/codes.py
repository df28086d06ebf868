"""Codes of a finished tokenizer: `python -m commands.codes --run runs/digits/tokenizer/fq_dual`.

Measures on the validation images the bits of an image, the use of the codes at each position, and pFID (RobusTok, arXiv
2509.12474): the Fréchet distance of what is decoded after codes were replaced by near neighbours, next to rFID of the
same images. Prints a table and writes `codes.json` into the run. See docs/analysis.md, "Codes".
"""

from __future__ import annotations

from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from artifacts.run_files import CODES
from commands import tables
from commands.comparison import add_extractor_arguments, extractor_of
from commands.measuring import batches_of, directory_of, images_of, measured_with, save
from commands.preset import Preset, metric_size, preset_of
from commands.program import new_parser, print_tables, run
from polytoken.errors import UserError
from polytoken.images import resize_displayed
from polytoken.loading import Checkpoint
from polytoken.metrics.extractor import Extractor
from polytoken.metrics.image_metrics import Target, image_metrics
from polytoken.metrics.image_set import ImageSet
from polytoken.metrics.images import to_uint8
from polytoken.metrics.perturbation import CodePerturbation, Perturbation
from polytoken.metrics.position_usage import PositionUsage
from polytoken.precision import full_precision
from polytoken.tokenizers import Tokenizer

LETTERS = {"reconstructed": "r", "perturbed": "p"}  # of the names of their metrics
CONTINUOUS = "the bottleneck is continuous: there are no codes to replace or to count"


def codes(
    run: Path, network: Extractor, perturbation: Perturbation | None = None, max_images: int | None = None
) -> dict[str, Any]:
    """Measure the codes of the validation images; returns the content of `codes.json`.

    A tokenizer without codes has bits only.

    Args:
        run: run of the tokenizer.
        network: whose features are compared.
        perturbation: replacement of codes.
        max_images: upper bound of the images, evenly spread; None is all.

    Raises:
        MissingFileError: if the run has no checkpoint.
        UserError: if it is not a tokenizer's, reads no images, or decodes values that are not finite.
    """
    if max_images is not None and max_images < 2:
        raise UserError(f"--max-images is {max_images}: a distance is one of at least 2 images")
    checkpoint = Checkpoint.open(run)
    measured = measured_with(checkpoint, "torch")
    tokenizer = checkpoint.tokenizer().to(network.device)
    found: dict[str, Any] = {"n": 0, "metrics": {}, "positions": [], "notes": [CONTINUOUS]}
    if tokenizer.spec is not None:
        found = _measure(run, tokenizer, network, perturbation or Perturbation(), max_images)
    return {"bits_per_image": tokenizer.bits_per_image, **found, **measured}


def _measure(
    run: Path, tokenizer: Tokenizer, network: Extractor, settings: Perturbation, max_images: int | None
) -> dict[str, Any]:
    device, data = network.device, images_of(run, tokenizer.image_size)
    size = metric_size(directory_of(run) / "config.yaml")
    perturb = CodePerturbation(tokenizer.quantizer, settings)
    positions = PositionUsage(tokenizer.require_codes(), device)
    names = ("original", *LETTERS)
    sets = {name: ImageSet.for_use(network, 0, keep_rows=False, use="reconstruction") for name in names}
    for batch in batches_of(data, "validation", max_images):
        images = batch["image"].to(device)
        with torch.inference_mode(), full_precision(device):
            encoding = tokenizer.encode(images)
            assert encoding.codes is not None
            shown = {
                "original": images,
                "reconstructed": tokenizer.decode(encoding.quantized).image,
                "perturbed": tokenizer.decode_codes(perturb(encoding.codes, batch["index"].to(device))),
            }
        positions.update(encoding.codes)
        for name, pixels in shown.items():
            if not bool(pixels.isfinite().all()):  # in 8 bits they would pass for black ones
                raise UserError(f"{name} images of {run} are not finite: train the tokenizer again")
            pixels = pixels.float() if size is None else resize_displayed(pixels, size)
            sets[name].add(to_uint8(pixels), batch["label"], batch["index"])
    measured = {name: images.compute() for name, images in sets.items()}
    originals = measured["original"]
    target = Target.of_images(originals, "the images that were fed in")
    return {
        "n": originals.count,
        "extractor": {"name": network.name, "sha256": network.sha256, "resize": network.resize},
        "metrics": {name: image_metrics(measured[name], target, letter) for name, letter in LETTERS.items()},
        "perturbation": asdict(settings),
        "neighbours": [nearest.delta for nearest in perturb.neighbours],
        "positions": [
            {"usage": usage.tolist(), "perplexity": perplexity.tolist()} for usage, perplexity in positions.compute()
        ],
        "notes": [*filter(None, (originals.features.shortage,))],
    }


def network_of(run: Path, given: Namespace) -> Extractor:
    """The network that the options name; by default that of the run's preset, or Inception."""
    given.preset = given.preset or preset_of(directory_of(run))
    return extractor_of(given, Preset.load(given.preset))


def metrics_of(result: dict[str, Any]) -> dict[str, float | None]:
    """Metrics by name, as validation names them; those of single positions as means over positions."""
    perturbed = result["metrics"].get("perturbed", {})
    metrics = {f"val/{name}": one["value"] for name, one in perturbed.items() if name.startswith(LETTERS["perturbed"])}
    metrics["val/code_bits"] = result["bits_per_image"]
    for index, at in enumerate(result["positions"]):
        metrics |= {f"val/position_{name}/{index}": fmean(values) for name, values in at.items()}
    return metrics


def show(result: dict[str, Any]) -> None:
    """Print the bits, the tables and the notes."""
    print(f"{result['bits_per_image']:,.0f} bits an image")
    print_tables(tables.codes(result))
    for note in result["notes"]:
        print(f"note: {note}")


def work(given: Namespace) -> None:
    """Measure, write `codes.json`, and print it."""
    perturbation = Perturbation(given.alpha, given.beta, given.delta, given.seed)
    result = codes(given.run, network_of(given.run, given), perturbation, given.max_images)
    show(result)
    print(f"all results: {save(given.run, CODES, result)}")


def main(arguments: list[str] | None = None) -> None:
    """Run the program."""
    parser = new_parser("commands.codes", __doc__)
    parser.add_argument("--run", type=Path, required=True, help="run of a tokenizer: runs/digits/tokenizer/fq_dual")
    parser.add_argument("--alpha", type=float, default=0.5, help="share of the codes that are replaced")
    parser.add_argument("--beta", type=float, default=1.0, help="share of the images in which they are")
    parser.add_argument("--delta", type=int, default=100, help="nearest codes that a replacement is drawn from")
    parser.add_argument("--seed", type=int, default=0, help="seed of the replacements")
    parser.add_argument("--max-images", type=int, help="most validation images, evenly spread; by default all")
    add_extractor_arguments(parser)
    parser.set_defaults(preset=None)
    run(parser, work, arguments)


if __name__ == "__main__":
    main()
