"""What a set of generated images is worth: `python -m commands.evaluate --samples FILE.npz --preset digits`.

The judge of an embedded preset stands where published protocols have Inception. Every figure is then given for the
samples, for real validation images (the best to be expected), for as many real training images (how far two real sets
lie apart; the judge was trained on these, so it is surer of them) and for the tokenizer's reconstructions (the best
that its codes allow), and none compares with a published one. With `--reference FILE.npz` (ADM's, or one of
`make reference`) anyone's samples are measured against that file alone, by Inception where the preset has no judge.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from rich.progress import track

from artifacts.metrics import comparison, merge_section
from artifacts.run_files import Samples
from artifacts.samples import SamplesFile
from commands.measuring import Measuring, add_arguments
from commands.preset import BATCH, LABELLED
from commands.program import new_parser, print_table, run
from polytoken import records
from polytoken.errors import UserError
from polytoken.images import from_uint8
from polytoken.metrics.generation import SPLIT, Target, figures_of, kind_of
from polytoken.metrics.image_set import Measured

if TYPE_CHECKING:
    from polytoken.tokenizers import Tokenizer

TITLES = {
    "samples": "samples",
    "reconstructions": "reconstructions",
    "validation": "real, validation",
    "train": "real, training",
}
COLUMNS = {
    "recognised": ("recog-\nnised", "{:.1%}"),
    "is": ("score", "{:.2f}"),
    "fd": ("Fréchet\ndistance", "{:.3f}"),
    "fid": ("FID", "{:.2f}"),
    "sfid": ("sFID", "{:.2f}"),
    "precision": ("preci-\nsion", "{:.3f}"),
    "recall": ("recall", "{:.3f}"),
    "kid": ("KID", "{:.5f}"),
    "kd": ("kernel\ndistance", "{:.5f}"),
}


def evaluate(samples: Path, measuring: Measuring, tokenizer_run: Path | None = None) -> dict[str, Any]:
    """Measure a file of samples, and return what ``metrics.json`` keeps.

    Args:
        samples: the npz.
        measuring: the network, and what the samples are compared with.
        tokenizer_run: of the samples' tokenizer; None is where ``samples.json`` says. Only beside a judge.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if the file is damaged, or its images, labels or classes do not fit what they are compared with.
    """
    file = SamplesFile(samples)
    digest = file.digest()
    made = _sidecar(samples, digest)
    classes = 0 if file.labels is None else int(file.labels.max()) + 1
    measuring.check(file.image_size, classes, made.get("class_names"), file.path)
    extractor, notes = measuring.extractor, []
    sets: dict[str, Measured] = {}
    tokenizer = None
    if measuring.reference is None:  # the judge's own preset
        sets["validation"] = measuring.measure(measuring.own.real("validation"))
        sets["train"] = measuring.measure(measuring.own.real("train", at_most=len(file)))
        target = Target.of_images(sets["validation"], f"{measuring.own.name} validation images")
        tokenizer = _tokenizer(tokenizer_run, made, notes)
        if tokenizer is not None:
            sets["reconstructions"] = measuring.measure(_reconstructions(measuring, tokenizer.network))
    else:
        target = measuring.target(file.image_size)
    sets["samples"] = measuring.measure(_samples(file), len(file), keep_rows=target.rows is not None)
    letters = {"samples": "g" if measuring.use == "generation" else "r", "reconstructions": "r"}
    figures = {
        name: figures_of(found, None if name == "validation" else target, letters.get(name, ""), extractor.device)
        for name, found in sets.items()
    }
    notes += target.notes
    if (shortage := sets["samples"].features.shortage) is not None:
        notes.append(shortage.replace("images", "samples", 1))
    notes += _doubts(file, measuring, target)
    about = {
        "path": str(samples),
        "sha256": digest,
        "n": len(file),
        "use": measuring.use,
        "settings": made.get("settings"),
        "versions": made.get("versions"),
        "reconstructed_by": None if tokenizer is None else tokenizer.origin,
    }
    return comparison(figures, about, extractor, target, notes)


def _doubts(file: SamplesFile, measuring: Measuring, target: Target) -> Iterator[str]:
    """What makes figures of this file differ from others that are called the same."""
    name, labels = measuring.extractor.name, file.labels
    if labels is None and name == "judge":
        yield "the samples have no labels (arr_1), so none can be recognised"
    sorted_by_class = labels is not None and len(labels) > SPLIT and bool((labels[1:] >= labels[:-1]).all())
    if name == "inception" and measuring.use == "generation" and sorted_by_class:
        yield (
            f"the samples are sorted by class, and {SPLIT} in a row show few classes: their inception score is lower "
            "than in random order"
        )
    number = target.about["reference_n"]
    if measuring.use == "reconstruction" and number not in (None, len(file)):
        yield (
            f"rFID is a distance to the very images that were fed in, and the reference is of {number} images where "
            f"these are {len(file)}"
        )


def _samples(file: SamplesFile) -> Iterator[LABELLED]:
    start = 0
    batches = track(file.batches(BATCH), "samples, batches", total=-(-len(file) // BATCH), transient=True)
    for batch in batches:
        images = from_uint8(torch.from_numpy(batch.copy()).permute(0, 3, 1, 2))
        labels = None if file.labels is None else torch.from_numpy(file.labels[start : start + len(batch)])
        start += len(batch)
        yield images, labels


class _Known(NamedTuple):
    """The samples' tokenizer."""

    network: Tokenizer
    origin: dict[str, str]


def _tokenizer(tokenizer_run: Path | None, made: dict[str, Any], notes: list[str]) -> _Known | None:
    """The tokenizer of the samples; None, and a note, where it is not known or another one now."""
    from polytoken.fingerprint import fingerprint
    from polytoken.loading import load_tokenizer

    recorded = (made.get("settings") or {}).get("tokenizer")
    if tokenizer_run is None and (recorded is None or not Path(recorded["run"]).exists()):
        notes.append("no reconstructions: name the samples' tokenizer by --tokenizer RUN")
        return None
    run = tokenizer_run or Path(recorded["run"])
    tokenizer = load_tokenizer(run)
    found = fingerprint(tokenizer)
    if recorded is not None and found != recorded["fingerprint"]:
        notes.append(f"no reconstructions: the tokenizer in {run} is not the one that decoded the samples")
        return None
    return _Known(tokenizer, {"run": str(run), "fingerprint": found})


def _reconstructions(measuring: Measuring, tokenizer: Tokenizer) -> Iterator[LABELLED]:
    """The validation images through the tokenizer."""
    tokenizer.to(measuring.extractor.device)
    for images, labels in measuring.own.real("validation"):
        with torch.inference_mode():
            yield tokenizer(images.to(tokenizer.last_layer.device))[0].image.float().clamp(-1, 1), labels


def _sidecar(samples: Path, digest: str) -> dict[str, Any]:
    """What is written beside the samples on how they were made; nothing if it is about another file."""
    path = samples.with_suffix(".json")
    if not path.exists():
        return {}
    content = records.read(path, Any)
    if not isinstance(content, dict) or "sha256" not in content:
        return {}  # not the sample writer's
    made = records.decode(content, Samples, path)
    if made["sha256"] != digest:
        raise UserError(f"{path} describes a file of another digest than {samples}: delete it, or sample anew")
    return made


def show(result: dict[str, Any]) -> None:
    """Print the figures side by side."""
    name = result["extractor"]["name"]
    rows = {key: result["figures"][key] for key in TITLES if key in result["figures"]}
    found = {kind_of(name) for figures in rows.values() for name in figures}
    kinds = [kind for kind in COLUMNS if kind in found]
    body = []
    for key, figures in rows.items():
        cells = {kind_of(name): figure for name, figure in figures.items()}
        texts = [TITLES[key], str(next(iter(cells.values()))["n"])]
        for kind in kinds:
            value = cells[kind]["value"] if kind in cells else None
            itself = key == "validation" and kind in ("fd", "fid")
            texts.append("itself" if itself else "–" if value is None else COLUMNS[kind][1].format(value))
        body.append(texts)
    title = f"features: {name}; reference: {result['reference']['reference']}"
    print_table(title, ["images", "n", *(COLUMNS[kind][0] for kind in kinds)], body, result["notes"])


def main(arguments: list[str] | None = None) -> None:
    """Measure, write `metrics.json` beside the samples, and print a table."""
    parser = new_parser("commands.evaluate", __doc__)
    parser.add_argument("--samples", type=Path, required=True, help="npz of arr_0 uint8 NHWC and arr_1 labels")
    parser.add_argument("--tokenizer", type=Path, help="run of the samples' tokenizer; by default from samples.json")
    add_arguments(parser, with_use=True)
    run(parser, work, arguments)


def work(given: argparse.Namespace) -> None:
    """Measure, write and print."""
    result = evaluate(given.samples, Measuring.chosen(given), given.tokenizer)
    name = "metrics.json" if given.samples.name == "samples.npz" else f"{given.samples.stem}_metrics.json"
    path = given.samples.with_name(name)
    merge_section(path, "evaluate", result)
    show(result)
    print(f"all of it: {path}")


if __name__ == "__main__":
    main()
