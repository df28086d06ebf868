"""Statistics of real images, which FID is a distance to: `python -m commands.reference --preset imagenet`.

Measures all images of a split, centre-cropped as they are fed to a tokenizer in validation, or all of an npz, and
writes a file that `python -m commands.evaluate --reference` and ADM's evaluator read. See docs/evaluation.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, get_args

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from artifacts.reference import Reference, ReferenceProtocol, write_reference
from artifacts.samples import SamplesFile
from commands.extractors import HELP, extractor_named
from commands.preset import BATCH, Preset
from datamodules.dataset import ImageDataset, collate
from datamodules.sources.base import Split
from polytoken.errors import UserError
from polytoken.metrics.extractor import Extractor
from polytoken.metrics.image_set import ImageSet
from polytoken.metrics.images import to_uint8


class Images(Protocol):
    """Where images come from."""

    name: str
    image_size: int

    def __len__(self) -> int:
        """How many there should be."""

    def batches(self, rows: list[int] | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Images uint8 (B, 3, H, W) and their rows (B,), of all rows or of these; unreadable ones are left out."""


class SplitImages:
    """The images of a preset's split, as an evaluation sees them."""

    def __init__(self, preset: Preset, split: Split) -> None:
        self.name = f"{split} images of {preset.name}, centre-cropped"
        self.image_size = preset.data.image_size
        self._workers = preset.data.num_workers
        records, transform = preset.data.source.split(split), preset.data.evaluation_transform
        self._images = ImageDataset(records, transform, split, 0, replace_unreadable=False)

    def __len__(self) -> int:
        return len(self._images)

    def batches(self, rows: list[int] | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """See :class:`Images`."""
        images: Any = self._images if rows is None else Subset(self._images, rows)
        for batch in DataLoader(images, BATCH, collate_fn=collate, num_workers=self._workers):
            yield to_uint8(batch["image"]), batch["index"]


class NpzImages:
    """The images of anyone's npz."""

    def __init__(self, path: Path) -> None:
        self._file = SamplesFile(path)
        height, width = self._file.image_size
        if height != width:
            raise UserError(f"{path} holds images of {height} × {width} px: a reference is of square ones")
        self.name, self.image_size = f"{path.name}, SHA-256 {self._file.digest()}", height

    def __len__(self) -> int:
        return len(self._file)

    def batches(self, rows: list[int] | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """See :class:`Images`."""
        wanted = None if rows is None else np.isin(np.arange(len(self)), rows)
        for start, batch in zip(range(0, len(self), BATCH), self._file.batches(BATCH), strict=True):
            indices = np.arange(start, start + len(batch))
            if wanted is not None:
                batch, indices = batch[wanted[indices]], indices[wanted[indices]]
            yield torch.from_numpy(batch.copy()).permute(0, 3, 1, 2), torch.from_numpy(indices)


@dataclass(frozen=True)
class Plan:
    """What is measured, and where it goes.

    Args:
        images: the images.
        kind: training or validation images.
        extractor: the network.
        num_images: images that the file keeps for precision and recall, evenly chosen.
        output: the npz.
    """

    images: Images
    kind: Split
    extractor: Extractor
    num_images: int
    output: Path


def measure(plan: Plan) -> Reference:
    """Measure the images, write the file and read it again.

    Raises:
        ValueError: if features are not finite, or an npz is damaged.
    """
    measured_set, readable = ImageSet(plan.extractor), []
    with Progress() as progress:
        bar = progress.add_task(f"{plan.extractor.name} of {plan.kind} images", total=len(plan.images))
        for images, rows in plan.images.batches():
            measured_set.add(images)
            readable += rows.tolist()
            progress.advance(bar, len(rows))
    measured = measured_set.compute()
    kept = min(max(plan.num_images, 0), len(readable))
    chosen = [readable[row * len(readable) // kept] for row in range(kept)]
    protocol = ReferenceProtocol(
        kind=plan.kind,
        source=plan.images.name,
        number=measured.count,
        image_size=plan.images.image_size,
        extractor=plan.extractor.name,
        extractor_sha256=plan.extractor.sha256,
        resize=plan.extractor.resize,
    )
    if measured.count < len(plan.images):
        missing = len(plan.images) - measured.count
        protocol = replace(protocol, source=f"{protocol.source}, {missing} of which cannot be read")
    pieces = (images.permute(0, 2, 3, 1).numpy() for images, _ in plan.images.batches(chosen)) if kept else iter(())
    write_reference(plan.output, protocol, measured.features, measured.spatial, pieces, kept)
    return Reference.read(plan.output)


def plan_of(given: argparse.Namespace) -> Plan:
    """What the options ask for.

    Raises:
        UserError: if the preset is unknown.
        FileNotFoundError: if weights or images are missing.
        ValueError: if the network is unknown, or a file is not what it should be.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    preset = None if given.npz else Preset.load(given.preset, given.data)
    images: Images = NpzImages(given.npz) if preset is None else SplitImages(preset, given.split)
    extractor = extractor_named(given.extractor, preset, given.runs, given.weights, device)
    place = given.runs / (given.preset if preset is not None else "any")
    name = f"{given.split if preset is not None else given.npz.stem}_{extractor.name}.npz"
    return Plan(images, given.split, extractor, given.images, given.output or place / "reference" / name)


def main(arguments: list[str] | None = None) -> None:
    """Measure, write, and say where it is."""
    parser = argparse.ArgumentParser(prog="python -m commands.reference", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--preset", default="digits", help="whose images")
    parser.add_argument("--data", help="folder of the preset's images, where it is another than the preset says")
    parser.add_argument("--npz", type=Path, help="measure the images of this npz (arr_0) instead of a preset's")
    parser.add_argument(
        "--split",
        choices=get_args(Split),
        default="validation",
        help="which images: validation for rFID, train for gFID; of an npz, which they are",
    )
    parser.add_argument("--extractor", help=HELP)
    parser.add_argument("--weights", type=Path, help="of the extractor; by default those of `make weights`")
    parser.add_argument("--images", type=int, default=10_000, help="images kept for precision and recall; 0 keeps none")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="root of all runs")
    parser.add_argument(
        "--output", type=Path, help="the npz; by default <runs>/<preset>/reference/<split>_<network>.npz"
    )
    try:
        plan = plan_of(parser.parse_args(arguments))
        reference = measure(plan)
    except (UserError, OSError, RuntimeError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    own = reference.protocol
    print(f"{own.number} {own.source}: {len(reference.features.mean)} features by {own.extractor}")
    if reference.features.shortage is not None:
        print(f"note: {reference.features.shortage}")
    print(f"the reference is {reference.path} (SHA-256 {reference.sha256})")


if __name__ == "__main__":
    main()
