"""Reconstructions of TokBench's images for its own evaluator: `python -m commands.tokbench --run RUN --data TokBench`.

Reads `images/text_data/<set>` and `images/face_data/<set>`, and writes `text_data/<set>_<size>` and so on. As in the
scripts of TokBench (arXiv 2505.18142, wjf5203/TokBench@855802d), an image is scaled to the tokenizer's size without a
change of its aspect, put in the middle of a black square, reconstructed, cropped again and scaled back. See
docs/analysis.md, "Text and faces".
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from math import ceil
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from commands.fidelity import BATCH, reconstructed
from commands.measuring import directory_of
from commands.placed import read_image
from commands.program import best_device, new_parser, run
from commands.progress import track
from datamodules.sources.listing import list_images
from polytoken.errors import MissingFileError
from polytoken.loading import load_tokenizer
from polytoken.tokenizers import Tokenizer

KINDS = ("text_data", "face_data")


def write_reconstructions(tokenizer: Tokenizer, data: Path, output: Path, place: Path) -> list[Path]:
    """Reconstruct all images, each into a file of its name and size; returns the folders of the sets.

    Files that exist are written again. JPEGs are saved with Pillow's default quality, as TokBench's scripts save them.

    Args:
        tokenizer: on its device.
        data: the folder of TokBench, which holds `images`.
        output: the folder of `text_data` and `face_data`.
        place: of the tokenizer, for messages.

    Raises:
        MissingFileError: if there are no sets.
        UserError: if an image cannot be read or a reconstruction is not finite.
    """
    sets = [one for kind in KINDS for one in sorted((data / "images" / kind).glob("*")) if one.is_dir()]
    if not sets:
        raise MissingFileError(
            f"there is no images/text_data/<set> and no images/face_data/<set> in {data}: name the folder of TokBench "
            "(Junfeng5/TokBench on Hugging Face)"
        )
    folders = []
    for folder in sets:
        folders.append(output / folder.parent.name / f"{folder.name}_{tokenizer.image_size}")
        names = list_images(folder).images
        for first in track(range(0, len(names), BATCH), f"{folder.name}, batches"):
            _write(tokenizer, folder, names[first : first + BATCH], folders[-1], place)
    return folders


def _write(tokenizer: Tokenizer, source: Path, names: Sequence[str], target: Path, place: Path) -> None:
    images, side = [read_image(source / name) for name in names], tokenizer.image_size
    squares = [letterbox(image, side)[0] for image in images]
    batch = torch.from_numpy(np.stack([np.asarray(square) for square in squares])).permute(0, 3, 1, 2)
    for name, image, decoded in zip(names, images, reconstructed(tokenizer, place, batch), strict=True):
        _, box = letterbox(image, side)
        restored = Image.fromarray(decoded.permute(1, 2, 0).numpy()).crop(box)
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        restored.resize(image.size, Image.Resampling.LANCZOS).save(target / name)


def letterbox(image: Image.Image, side: int) -> tuple[Image.Image, tuple[int, int, int, int]]:
    """An image in the middle of a black square, and its box there: left, top, right and bottom."""
    scale = side / max(image.size)
    width, height = (min(side, ceil(length * scale)) for length in image.size)
    left, top = (side - width) // 2, (side - height) // 2
    square = Image.new("RGB", (side, side))
    square.paste(image.resize((width, height), Image.Resampling.LANCZOS), (left, top))
    return square, (left, top, left + width, top + height)


def work(given: Namespace) -> None:
    """Write the reconstructions and say where they are."""
    tokenizer = load_tokenizer(given.run).to(best_device())
    output = given.output or directory_of(given.run) / "tokbench"
    folders = write_reconstructions(tokenizer, given.data, output, given.run)
    print(f"{len(folders)} sets of reconstructions: {output}; TokBench's image_eval.sh measures them")


def main(arguments: list[str] | None = None) -> None:
    """Run the program."""
    parser = new_parser("commands.tokbench", __doc__)
    parser.add_argument("--run", type=Path, required=True, help="run of a tokenizer of 256, 512 or 1,024 pixels")
    parser.add_argument("--data", type=Path, required=True, help="folder of TokBench, which holds images/text_data")
    parser.add_argument("--output", type=Path, help="folder of the reconstructions; by default tokbench in the run")
    run(parser, work, arguments)


if __name__ == "__main__":
    main()
