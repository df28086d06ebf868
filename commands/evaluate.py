"""Metrics of a file of images: `python -m commands.evaluate --samples FILE.npz --preset digits`.

On a small preset its judge, or else EfficientNet-Lite2, takes the place of Inception, and no metric compares with a
published one. The table then also shows real validation images (the best to be expected), as many real training images
(the distance of two real sets; a judge was trained on these and is surer of them) and the tokenizer's reconstructions
(the best that its codes allow). With `--reference FILE.npz` (ADM's, or one of `make reference`) samples of any origin
are compared with that file alone, by Inception if the preset trains no network.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor

from artifacts import yaml_files
from artifacts.metrics import comparison_section, merge_section
from artifacts.run_files import METRICS, Evaluation, Samples, TokenizerSource
from artifacts.samples import SamplesFile
from commands.comparison import Comparison, add_arguments
from commands.image_sets import SETS
from commands.metric_names import OF_IMAGE_SETS, kind_of
from commands.preset import BATCH
from commands.program import new_parser, print_table, run
from commands.progress import track
from polytoken import records
from polytoken.errors import MissingFileError, UserError
from polytoken.files import file_sha256
from polytoken.metrics.image_metrics import Target, image_metrics
from polytoken.metrics.image_set import SPLIT, ImageStatistics, Use
from polytoken.precision import full_precision

if TYPE_CHECKING:
    from polytoken.tokenizers import Tokenizer

NARROW = {  # titles of columns that would not fit on 80 characters
    "recognised": "recog-\nnised",
    "fd": "Fréchet\ndistance",
    "precision": "preci-\nsion",
    "kd": "kernel\ndistance",
}


def evaluate(samples: Path, comparison: Comparison, tokenizer_run: Path | None = None) -> Evaluation:
    """Measure a file of samples; returns the section ``evaluate`` of ``metrics.json``.

    Args:
        samples: the npz.
        comparison: the network, and the images to compare with.
        tokenizer_run: run of the samples' tokenizer, which is read with a judge only; None is the one that
            ``samples.json`` names.

    Raises:
        UserError: if a file is missing or damaged, or its images, labels or classes do not fit.
    """
    file = SamplesFile(samples)
    digest = file.digest()
    made = _sidecar(samples, digest)
    classes = 0 if file.labels is None else int(file.labels.max()) + 1
    comparison.check(file.image_size, classes, made.get("class_names"), file.path)
    notes: list[str] = []
    sets: dict[str, ImageStatistics] = {}
    origin = None
    if comparison.reference is None:  # the judge's own preset
        real = comparison.own
        sets["validation"] = comparison.measure(real.images("validation"))
        sets["train"] = comparison.measure(real.images("train", at_most=len(file)))
        target = Target.of_images(sets["validation"], f"{real.name} validation images")
        tokenizer, origin = _tokenizer(tokenizer_run, made, samples, notes)
        if origin is not None and _optimised(Path(origin["run"]), comparison.extractor.sha256):
            name = comparison.extractor.name
            notes.append(f"the tokenizer was trained with {name}, which finds its images better than they are")
        if tokenizer is not None:
            sets["reconstructions"] = comparison.measure(_reconstructions(comparison, tokenizer))
    else:
        target = comparison.target(file.image_size)
    sets["samples"] = comparison.measure(_samples(file), len(file), keep_rows=target.rows is not None)
    letters = {"samples": "g" if comparison.use == "generation" else "r", "reconstructions": "r"}
    device = comparison.extractor.device
    metrics = {
        name: image_metrics(found, None if name == "validation" else target, letters.get(name, ""), device)
        for name, found in sets.items()
    }
    notes += target.notes
    if (shortage := sets["samples"].features.shortage) is not None:
        notes.append(shortage.replace("images", "samples", 1))
    notes += _doubts(file, comparison, target)
    about = {
        "path": str(samples),
        "sha256": digest,
        "n": len(file),
        "use": comparison.use,
        "settings": made.get("settings"),
        "versions": made.get("versions"),
        "reconstructed_by": origin,
    }
    return comparison_section(metrics, about, comparison.extractor, target, notes)


def _doubts(file: SamplesFile, comparison: Comparison, target: Target) -> Iterator[str]:
    """Reasons why the metrics differ from others of the same name."""
    name, labels = comparison.extractor.name, file.labels
    if labels is None and name == "judge":
        yield "the samples have no labels (arr_1), so none can be recognised"
    sorted_by_class = labels is not None and len(labels) > SPLIT and bool((labels[1:] >= labels[:-1]).all())
    if name == "inception" and comparison.use == "generation" and sorted_by_class:
        yield (
            f"the samples are sorted by class, and {SPLIT} in a row show few classes: their inception score is lower "
            "than in random order"
        )
    number = target.about["reference_n"]
    if comparison.use == "reconstruction" and number not in (None, len(file)):
        yield (
            f"rFID is a distance to the very images that were fed in, and the reference is of {number} images where "
            f"these are {len(file)}"
        )


def _samples(file: SamplesFile) -> Iterator[tuple[Tensor, Tensor | None]]:
    start = 0
    for batch in track(file.batches(BATCH), "samples, batches", total=-(-len(file) // BATCH)):
        labels = None if file.labels is None else torch.from_numpy(file.labels[start : start + len(batch)])
        start += len(batch)
        yield torch.from_numpy(batch.copy()).permute(0, 3, 1, 2), labels


def _tokenizer(
    run: Path | None, made: dict[str, Any], samples: Path, notes: list[str]
) -> tuple[Tokenizer, dict[str, str]] | tuple[None, None]:
    """Tokenizer of the samples and its origin; none, and a note, if it is unknown or has changed."""
    from polytoken.fingerprint import fingerprint
    from polytoken.loading import load_tokenizer, present_run

    recorded = (made.get("settings") or {}).get("tokenizer")
    if recorded is not None:
        recorded = records.decode(recorded, TokenizerSource, f"the tokenizer in the settings of {samples}")
    if run is None:
        with suppress(MissingFileError):
            run = None if recorded is None else present_run(recorded["run"], samples)
    if run is None:
        notes.append("no reconstructions: name the samples' tokenizer by --tokenizer RUN")
        return None, None
    tokenizer = load_tokenizer(run)
    found = fingerprint(tokenizer)
    if recorded is not None and found != recorded["fingerprint"]:
        notes.append(f"no reconstructions: the tokenizer in {run} is not the one that decoded the samples")
        return None, None
    return tokenizer, {"run": str(run), "fingerprint": found}


def _optimised(run: Path, sha256: str | None) -> bool:
    """Does a term of a tokenizer's objective read the file with this digest?"""
    config = yaml_files.read(run / "config.yaml") if (run / "config.yaml").is_file() else {}
    objective = ((config.get("model") or {}).get("init_args") or {}).get("objective") or {}
    teachers = objective.get("teachers") or {}
    terms = [*objective.values(), *(objective.get("terms") or {}).values()]
    given = [term.get("init_args") or {} for term in terms if isinstance(term, dict)]
    given = [one for one in given if one.get("weight") != 0]  # which switches a term off
    files = [one.get("weights") for one in given]
    files += [teachers[one["teacher"]].get("weights") for one in given if one.get("teacher") in teachers]
    return any(file_sha256(file) == sha256 for file in files if file and Path(file).is_file())


def _reconstructions(comparison: Comparison, tokenizer: Tokenizer) -> Iterator[tuple[Tensor, Tensor]]:
    """The validation images through the tokenizer."""
    tokenizer.to(comparison.extractor.device)
    for images, labels in comparison.own.images("validation"):
        with torch.inference_mode(), full_precision(comparison.extractor.device):
            image = tokenizer(images.to(tokenizer.last_layer.device))[0].image.float()
        yield image.clamp(-1, 1), labels


def _sidecar(samples: Path, digest: str) -> dict[str, Any]:
    """Record of the sample writer in ``samples.json``; empty without that file."""
    path = samples.with_suffix(".json")
    if not path.exists():
        return {}
    content = records.read(path, Any)
    if not isinstance(content, dict) or "sha256" not in content:
        return {}  # not the sample writer's
    made = records.decode(content, Samples, path)
    if made["sha256"] != digest:
        raise UserError(f"{path} describes a file of another digest than {samples}: delete it, or sample again")
    return made


def show(result: dict[str, Any]) -> None:
    """Print the metrics of all sets."""
    rows = {key: result["metrics"][key] for key in SETS if result["metrics"].get(key)}  # itself has no distance
    found = {kind_of(name) for metrics in rows.values() for name in metrics}
    kinds = [kind for kind in OF_IMAGE_SETS if kind in found]
    body = []
    for key, metrics in rows.items():
        cells = {kind_of(name): metric for name, metric in metrics.items()}
        texts = [SETS[key], str(next(iter(cells.values()))["n"])]
        for kind in kinds:
            value = cells[kind]["value"] if kind in cells else None
            itself = key == "validation" and kind in ("fd", "fid")
            texts.append("itself" if itself else OF_IMAGE_SETS[kind].text(value))
        body.append(texts)
    title = f"features: {result['extractor']['name']}; reference: {result['reference']['reference']}"
    print_table(
        title, ["images", "n", *(NARROW.get(kind, OF_IMAGE_SETS[kind].title) for kind in kinds)], body, result["notes"]
    )


def work(given: Namespace) -> None:
    """Measure, write `metrics.json` next to the samples, and print a table."""
    result = evaluate(given.samples, Comparison.of(given, given.use), given.tokenizer)
    name = METRICS if given.samples.name == "samples.npz" else f"{given.samples.stem}_{METRICS}"
    path = given.samples.with_name(name)
    merge_section(path, "evaluate", result)
    show(result)
    print(f"all metrics: {path}")


def main(arguments: list[str] | None = None) -> None:
    """Run the program."""
    parser = new_parser("commands.evaluate", __doc__)
    parser.add_argument("--samples", type=Path, required=True, help="npz of arr_0 uint8 NHWC and arr_1 labels")
    parser.add_argument("--tokenizer", type=Path, help="run of the samples' tokenizer; by default from samples.json")
    add_arguments(parser)
    parser.add_argument(
        "--use", choices=get_args(Use), default="generation", help="kind of the images, which decides the reference"
    )
    run(parser, work, arguments)


if __name__ == "__main__":
    main()
