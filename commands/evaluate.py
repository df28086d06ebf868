"""What a set of generated images is worth: `python -m commands.evaluate --samples FILE.npz --preset digits`.

The judge of an embedded preset stands where published protocols have Inception. Every figure is given for the samples,
for real validation images (the best to be expected), for as many real training images (how far two real sets lie apart;
the judge was trained on these, so it is surer of them) and for the tokenizer's reconstructions (the best that its codes
allow). No figure compares with a published one.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentError, ArgumentParser
from lightning.pytorch import LightningDataModule
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from callbacks.metrics_file import commit, write_json
from commands.errors import CommandError
from datamodules.dataset import ImageDataset, collate
from datamodules.images import ImageDataModule
from datamodules.samples import SamplesFile, file_digest
from datamodules.sources import ImageSource
from datamodules.sources.base import Split
from metrics.frechet import frechet_distance
from metrics.image_set import ImageSet, Measured
from metrics.images import to_uint8
from metrics.judge import Judge
from models.classifier import SmallClassifier

PRESETS = Path(__file__).resolve().parent.parent / "configs" / "presets"
BATCH = 128
PREFIX = {"samples": "g", "reconstructions": "r"}  # generated, reconstructed: gfd/judge, rfd/judge
TITLES = {
    "samples": "samples",
    "reconstructions": "reconstructions of validation",
    "validation": "real, validation",
    "train": "real, training",
}
LABELLED = tuple[Tensor, "Tensor | None"]  # images (B, 3, H, W) in [-1, 1], labels (B,)


@dataclass(frozen=True)
class Preset:
    """The real images of a preset and its judge.

    Raises (in :meth:`load`):
        CommandError: if there is no such preset, or it has no judge.
    """

    name: str
    source: ImageSource
    data: ImageDataModule
    judge: Judge

    @classmethod
    def load(cls, name: str, runs: Path, device: torch.device) -> Preset:
        """Read the preset's data from its tokenizer's configuration, and its judge from its run."""
        config = PRESETS / name / "tokenizer.yaml"
        if not config.exists():
            known = ", ".join(sorted(path.parent.name for path in PRESETS.glob("*/tokenizer.yaml")))
            raise CommandError(f"there is no preset {name}: known are {known}")
        if not (PRESETS / name / "judge.yaml").exists():
            raise CommandError(
                f"the preset {name} has no judge, and evaluation with Inception is not built yet: samples.npz can be "
                "given to ADM's evaluator as it is"
            )
        parser = ArgumentParser(exit_on_error=False)
        parser.add_subclass_arguments(LightningDataModule, "data")
        try:
            section = yaml.safe_load(config.read_text(encoding="utf-8"))["data"]
            data = parser.instantiate(parser.parse_object({"data": section})).data
        except ArgumentError as error:
            raise CommandError(f"{config}: {error}") from error
        path = runs / name / "teacher" / "judge.safetensors"
        judge = SmallClassifier.load(path).to(device)
        return cls(name, data.source, data, Judge(judge, path))

    def real(self, split: Split, at_most: int | None = None) -> Iterator[LABELLED]:
        """Real images as they are fed to a tokenizer in validation; evenly chosen if fewer are wanted."""
        transform = self.data.evaluation_transform
        images: Any = ImageDataset(self.source.split(split), transform, split, 0, replace_unreadable=False)
        if at_most is not None and at_most < len(images):
            images = Subset(images, [row * len(images) // at_most for row in range(at_most)])
        for batch in DataLoader(images, BATCH, collate_fn=collate):
            yield batch["image"], batch["label"]


def evaluate(samples: Path, preset: Preset, tokenizer_run: Path | None = None) -> dict[str, Any]:
    """Measure a file of samples, and return what ``metrics.json`` keeps.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if the file is damaged, or its images, labels or classes do not fit the preset's.
    """
    file = SamplesFile(samples)
    digest = file.digest()
    made = _sidecar(samples, digest)
    _check_fits(file, preset, made.get("class_names"))
    notes: list[str] = []
    sets = {
        "samples": _measure(_samples(file), preset.judge),
        "validation": _measure(preset.real("validation"), preset.judge),
        "train": _measure(preset.real("train", at_most=len(file)), preset.judge),
    }
    reconstructions = _reconstructions(preset, tokenizer_run, made, notes)
    if reconstructions is not None:
        sets["reconstructions"] = _measure(reconstructions, preset.judge)
    if len(file) <= preset.judge.num_features:
        notes.append(
            f"{len(file)} samples for {preset.judge.num_features} features: the covariance is singular and the "
            "Fréchet distance much too high; sample more"
        )
    if file.labels is None:
        notes.append("the samples have no labels (arr_1), so none can be recognised")
    return {
        "figures": _figures(sets, f"{preset.name} validation images"),
        "samples": {"path": str(samples), "sha256": digest, "settings": made.get("settings")},
        "judge": {
            "path": str(preset.judge.path),
            "sha256": file_digest(preset.judge.path),
            "resize": f"none: {file.image_size[0]} × {file.image_size[1]} px as sampled",
        },
        "notes": notes,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "commit": commit(),
    }


def _measure(batches: Iterable[LABELLED], judge: Judge) -> Measured:
    images_of = ImageSet(judge)
    for images, labels in batches:
        images_of.add(to_uint8(images), labels)
    return images_of.compute()


def _figures(sets: dict[str, Measured], reference: str) -> dict[str, dict[str, dict[str, Any]]]:
    """Per set and name: value, number of images, reference and its number, extractor."""
    target = sets["validation"]
    figures: dict[str, dict[str, dict[str, Any]]] = {}
    for name, measured in sets.items():
        letter = PREFIX.get(name, "")
        common = {"n": measured.count, "extractor": "judge"}
        own = figures[name] = {
            "recognised/judge": {"value": measured.recognised, **common},
            f"{letter}is/judge": {"value": measured.score, **common},
        }
        if measured is not target:
            distance = max(0.0, float(frechet_distance(measured.features, target.features)))
            own[f"{letter}fd/judge"] = {
                "value": distance,
                **common,
                "reference": reference,
                "reference_n": target.count,
            }
    return figures


def _samples(file: SamplesFile) -> Iterator[LABELLED]:
    start = 0
    for batch in file.batches(BATCH):
        images = torch.from_numpy(batch.copy()).permute(0, 3, 1, 2).float() / 127.5 - 1
        labels = None if file.labels is None else torch.from_numpy(file.labels[start : start + len(batch)])
        start += len(batch)
        yield images, labels


def _reconstructions(
    preset: Preset, tokenizer_run: Path | None, made: dict[str, Any], notes: list[str]
) -> Iterator[LABELLED] | None:
    """The validation images through the tokenizer; None, and a note, where it is not known or another one now."""
    from lightning_modules.loading import load_tokenizer
    from models.fingerprint import fingerprint

    recorded = (made.get("settings") or {}).get("tokenizer")
    if tokenizer_run is None and (recorded is None or not Path(recorded["run"]).exists()):
        notes.append("no reconstructions: name the samples' tokenizer by --tokenizer RUN")
        return None
    run = tokenizer_run or Path(recorded["run"])
    tokenizer = load_tokenizer(run)
    if recorded is not None and fingerprint(tokenizer) != recorded["fingerprint"]:
        notes.append(f"no reconstructions: the tokenizer in {run} is not the one that decoded the samples")
        return None
    tokenizer.to(preset.judge.network.linear.weight.device)

    def batches() -> Iterator[LABELLED]:
        for images, labels in preset.real("validation"):
            with torch.inference_mode():
                yield tokenizer(images.to(tokenizer.last_layer.device))[0].float().clamp(-1, 1), labels

    return batches()


def _sidecar(samples: Path, digest: str) -> dict[str, Any]:
    """What is written beside the samples on how they were made; nothing if it is about another file."""
    path = samples.with_suffix(".json")
    if not path.exists():
        return {}
    made = json.loads(path.read_text(encoding="utf-8"))
    if "sha256" not in made:
        return {}  # not the sample writer's
    if made["sha256"] != digest:
        raise ValueError(f"{path} describes a file of another digest than {samples}: delete it, or sample anew")
    return made


def _check_fits(file: SamplesFile, preset: Preset, class_names: list[str] | None) -> None:
    expected = (preset.data.image_size,) * 2
    if file.image_size != expected:
        raise ValueError(
            f"{file.path} holds images of {file.image_size[0]} × {file.image_size[1]} px, and the images of "
            f"{preset.name} have {expected[0]} × {expected[1]}: name the preset that they were made for"
        )
    classes = preset.judge.num_classes
    if file.labels is not None and file.labels.max() >= classes:
        raise ValueError(
            f"{file.path} holds label {file.labels.max()}, and the judge {preset.judge.path} knows the {classes} "
            f"classes 0 … {classes - 1}: name the preset that they were made for"
        )
    names = {index: name for name, index in preset.source.class_to_idx.items()}
    for index, name in enumerate(class_names or ()):
        if names.get(index) != name:
            raise ValueError(f"class {index} is {name} in {file.path} and {names.get(index)} in {preset.name}")


def show(result: dict[str, Any], console: Console) -> None:
    """Print the figures side by side."""
    table = Table(title="in the eyes of the judge; Fréchet distances to the real validation images")
    for column in ("images", "n", "recognised", "judge score", "Fréchet distance"):
        table.add_column(column, justify="left" if column == "images" else "right")
    for key, title in TITLES.items():
        if key not in result["figures"]:
            continue
        own, letter = result["figures"][key], PREFIX.get(key, "")
        share, distance = own["recognised/judge"]["value"], own.get(f"{letter}fd/judge")
        table.add_row(
            title,
            str(own["recognised/judge"]["n"]),
            "–" if share is None else f"{share:.1%}",
            f"{own[f'{letter}is/judge']['value']:.2f}",
            "0 (itself)" if distance is None else f"{distance['value']:.3f}",
        )
    console.print(table)
    for note in result["notes"]:
        console.print(f"note: {note}")


def main(arguments: list[str] | None = None) -> None:
    """Measure, write `metrics.json` beside the samples, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m commands.evaluate", description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=Path, required=True, help="npz of arr_0 uint8 NHWC and arr_1 labels")
    parser.add_argument("--preset", default="digits", help="whose real images and judge to measure with")
    parser.add_argument("--tokenizer", type=Path, help="run of the samples' tokenizer; by default from samples.json")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="root of all runs")
    options = parser.parse_args(arguments)
    try:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        result = evaluate(options.samples, Preset.load(options.preset, options.runs, device), options.tokenizer)
    except (CommandError, FileNotFoundError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    name = "metrics.json" if options.samples.name == "samples.npz" else f"{options.samples.stem}_metrics.json"
    path = options.samples.with_name(name)
    sections = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    write_json(path, {**sections, "evaluate": result})
    show(result, Console())
    print(f"all of it: {path}")


if __name__ == "__main__":
    main()
