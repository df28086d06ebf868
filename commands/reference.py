"""Statistics of real images, the reference of FID: `python -m commands.reference --preset imagenet`.

Measures all images of a split, centre-cropped as validation shows them to a tokenizer, or all images of an npz, and
writes a file that `python -m commands.evaluate --reference` and ADM's evaluator read. See docs/evaluation.md.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from artifacts.reference import Reference, ReferenceProtocol, write_reference
from artifacts.samples import SamplesFile
from commands.comparison import add_extractor_arguments, extractor_of
from commands.preset import BATCH, Preset, real_images, spread
from commands.program import new_parser, run
from commands.progress import track
from datamodules.sources.base import Split
from polytoken.errors import UserError
from polytoken.metrics.extractor import Extractor
from polytoken.metrics.image_set import ImageSet
from polytoken.metrics.images import to_uint8


@dataclass(frozen=True)
class Source:
    """Images to measure.

    Args:
        name: their origin, in words.
        count: their number, including unreadable ones.
        image_size: pixels per side.
        batches: yields images uint8 (B, 3, H, W) and their rows (B,), of the given rows or of all; unreadable images
            are left out.
    """

    name: str
    count: int
    image_size: int
    batches: Callable[[list[int] | None], Iterator[tuple[Tensor, Tensor]]]

    @classmethod
    def of_preset(cls, preset: Preset, split: Split) -> Source:
        """Images of a preset's split."""

        def batches(rows: list[int] | None) -> Iterator[tuple[Tensor, Tensor]]:
            for batch in real_images(preset.data, split, rows):
                yield to_uint8(batch["image"]), batch["index"]

        count = len(preset.data.source.split(split))
        return cls(f"{split} images of {preset.name}, centre-cropped", count, preset.data.image_size, batches)

    @classmethod
    def of_npz(cls, path: Path) -> Source:
        """Images of an npz.

        Raises:
            UserError: if they are not square.
        """
        file = SamplesFile(path)
        height, width = file.image_size
        if height != width:
            raise UserError(
                f"{path} holds images of {height} × {width} px: a reference needs square ones, so crop them first"
            )

        def batches(rows: list[int] | None) -> Iterator[tuple[Tensor, Tensor]]:
            start = 0
            for batch in file.batches(BATCH):
                indices = np.arange(start, start + len(batch))
                start += len(batch)
                kept = np.isin(indices, rows) if rows is not None else slice(None)
                yield torch.from_numpy(batch[kept].copy()).permute(0, 3, 1, 2), torch.from_numpy(indices[kept])

        return cls(f"{path.name}, SHA-256 {file.digest()}", len(file), height, batches)


def measure(source: Source, kind: Split, extractor: Extractor, num_images: int, output: Path) -> Reference:
    """Measure the images, write the file and read it.

    Args:
        source: the images.
        kind: their split.
        extractor: the network.
        num_images: images that the file keeps for precision and recall, evenly spread.
        output: the npz.

    Raises:
        UserError: if features are not finite, or an npz is damaged.
    """
    image_set, readable = ImageSet(extractor), []
    batches = track(source.batches(None), f"{extractor.name} of {kind} images, batches", -(-source.count // BATCH))
    for images, rows in batches:
        image_set.add(images)
        readable += rows.tolist()
    found = image_set.compute()
    kept = min(max(num_images, 0), len(readable))
    chosen = [readable[row] for row in spread(len(readable), kept) or range(kept)]
    missing = source.count - found.count
    protocol = ReferenceProtocol(
        kind=kind,
        source=source.name + (f", {missing} of which cannot be read" if missing else ""),
        number=found.count,
        image_size=source.image_size,
        extractor=extractor.name,
        extractor_sha256=extractor.sha256,
        resize=extractor.resize,
    )
    pieces = (images.permute(0, 2, 3, 1).numpy() for images, _ in source.batches(chosen)) if kept else iter(())
    write_reference(output, protocol, found.features, found.spatial, pieces, kept)
    return Reference.read(output)


def work(given: Namespace) -> None:
    """Measure, write, and print the place of the file."""
    preset = None if given.npz else Preset.load(given.preset, given.data)
    source = Source.of_npz(given.npz) if preset is None else Source.of_preset(preset, given.split)
    extractor = extractor_of(given, preset)
    place = given.runs / ("any" if preset is None else preset.name) / "reference"
    name = f"{given.npz.stem if preset is None else given.split}_{extractor.name}.npz"
    found = measure(source, given.split, extractor, given.images, given.output or place / name)
    own = found.protocol
    print(f"{own.number} {own.source}: {len(found.features.mean)} features by {own.extractor}")
    if found.features.shortage is not None:
        print(f"note: {found.features.shortage}")
    print(f"the reference is {found.path} (SHA-256 {found.sha256})")


def main(arguments: list[str] | None = None) -> None:
    """Run the program."""
    parser = new_parser("commands.reference", __doc__)
    add_extractor_arguments(parser)
    parser.add_argument("--data", help="folder of the preset's images, if it differs from the preset's")
    parser.add_argument("--npz", type=Path, help="measure the images of this npz (arr_0) instead of a preset's")
    parser.add_argument(
        "--split",
        choices=get_args(Split),
        default="validation",
        help="images to measure: validation for rFID, train for gFID; for an npz, the split that it holds",
    )
    parser.add_argument("--images", type=int, default=10_000, help="images kept for precision and recall; 0 keeps none")
    parser.add_argument(
        "--output", type=Path, help="the npz; by default <runs>/<preset>/reference/<split>_<network>.npz"
    )
    run(parser, work, arguments)


if __name__ == "__main__":
    main()
