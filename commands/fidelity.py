"""Text and face fidelity of a tokenizer: `python -m commands.fidelity --run runs/photos/tokenizer/vq`.

Writes words at several sizes into images, lets an OCR network read the images and their reconstructions, and compares
what it reads with what was written. Does the same with faces and the embeddings of a network. Words and faces come with
installed packages. Prints tables, and writes `fidelity.json` and pictures into the run (TokBench, arXiv 2505.18142).
See docs/analysis.md, "Text and faces".
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from artifacts.fidelity import FIDELITY, FaceRow, Fidelity, TextRow, tables
from commands import measuring
from commands.fidelity_pictures import ReadWord, draw_faces, draw_words
from commands.placed import Placed, Word, choose_words, faces_in, place_faces, place_words
from commands.program import best_device, new_parser, print_tables, run
from commands.progress import track
from polytoken.errors import UserError
from polytoken.images import from_uint8, to_uint8
from polytoken.loading import Checkpoint
from polytoken.metrics.extractor import Extractor
from polytoken.metrics.extractors import load_extractor
from polytoken.metrics.fidelity import face_scores, text_scores
from polytoken.metrics.word_reader import WordReader
from polytoken.precision import full_precision
from polytoken.teachers.efficientnet import MEASURES
from polytoken.tokenizers import Tokenizer

WORDS = 200
WORD_HEIGHTS = (1 / 32, 1 / 16, 1 / 8, 1 / 4)  # of the side of an image
FACE_SIDES = (1 / 16, 1 / 8, 1 / 4, 1 / 2)
LEAST_WORD, LEAST_FACE = 8, 16  # pixels; below, the originals are not legible either
BATCH = 32
Reconstruct = Callable[[Tensor], Tensor]
"""Images uint8 (B, 3, S, S) to as many."""


class Reader(Protocol):
    """A network that reads words."""

    name: str

    @property
    def sha256(self) -> str:
        """Digest of its weights."""

    def __call__(self, crops: Sequence[np.ndarray]) -> list[str]:
        """The word in each crop uint8 (h, w, 3)."""


class Fidelities(NamedTuple):
    """Content of `fidelity.json`, and by the size in pixels what the pictures show."""

    result: Fidelity
    words: dict[int, list[ReadWord]]
    faces: dict[int, list[tuple[Tensor, Tensor]]]


def measure(
    run: Path,
    words: int = WORDS,
    word_heights: Sequence[float] = (),
    faces: Path | None = None,
    face_sides: Sequence[float] = (),
    new_extractor: Callable[[], Extractor] | None = None,
    seed: int = 0,
    device: torch.device | None = None,
    new_reader: Callable[[], Reader] = WordReader,
) -> Fidelities:
    """Reconstruct words and faces, read and embed them.

    Args:
        run: run of the tokenizer.
        words: number of words a size; 0 leaves text out.
        word_heights: heights of a word as shares of the image's side; by default those of `WORD_HEIGHTS` that have at
            least 8 pixels.
        faces: folder of faces; None is the ones inside scikit-image.
        face_sides: sides of a face as shares of the image's side; by default those of `FACE_SIDES` of at least 16
            pixels.
        new_extractor: makes the network of the embeddings; None leaves faces out.
        seed: of words, places and colours.
        device: device of the tokenizer; None is the CPU.
        new_reader: makes the network that reads words.

    Raises:
        MissingFileError: if the run has no checkpoint, or the folder no faces.
        UserError: if it is not a tokenizer's, nothing or an impossible size is to be measured, the reader is not
            installed, or a reconstruction is not finite.
    """
    if words < 1 and new_extractor is None:
        raise UserError("0 words and no network that embeds faces: there is nothing to measure")
    checkpoint = Checkpoint.open(run)
    tokenizer = checkpoint.tokenizer().to(device or torch.device("cpu"))
    reader = new_reader() if words > 0 else None
    packages = ["torch", "pillow", "matplotlib", "scikit-learn", "scikit-image", *(["onnxruntime"] if reader else [])]
    measured = measuring.measured_with(checkpoint, *packages)
    side = tokenizer.image_size
    reconstruct = partial(reconstructed, tokenizer, run)
    read, pairs, extractor = {}, {}, None
    if reader is not None:
        heights = pixels_of(word_heights, WORD_HEIGHTS, side, LEAST_WORD)
        read = read_words(reconstruct, side, words, heights, seed, reader)
    if new_extractor is not None:
        portraits, extractor = faces_in(faces), new_extractor()
        sides = pixels_of(face_sides, FACE_SIDES, side, LEAST_FACE)
        pairs = face_pairs(reconstruct, side, portraits, sides)
    result: Fidelity = {
        "text": [text_row(height, found) for height, found in read.items()],
        "faces": [face_row(pixels, found, extractor) for pixels, found in pairs.items()] if extractor else [],
        "image_size": side,
        "reader": reader and {"name": reader.name, "sha256": reader.sha256},
        "extractor": extractor and {"name": extractor.name, "sha256": extractor.sha256, "resize": extractor.resize},
        "settings": {
            "words": words,
            "faces": "scikit-image's part of LFW" if faces is None else str(faces),
            "seed": seed,
        },
        **measured,
    }
    return Fidelities(result, read, pairs)


def pixels_of(given: Sequence[float], default: Sequence[float], side: int, least: int) -> list[int]:
    """Sizes in pixels, from the least: of the given shares of an image's side, or the legible ones of the default.

    Raises:
        UserError: if a given size is not legible or larger than an image, or no default is legible.
    """
    sizes = sorted({round(share * side) for share in given or default})
    wrong = [size for size in sizes if not least <= size <= side]
    if given and wrong:
        raise UserError(
            f"a size of {wrong[0] / side:g} is {wrong[0]} of the {side} pixels of an image: sizes from "
            f"{least / side:g} to 1 are measured"
        )
    if len(wrong) == len(sizes):
        raise UserError(f"images of {side} pixels are too small for text and faces")
    return [size for size in sizes if size not in wrong]


def reconstructed(tokenizer: Tokenizer, run: Path, images: Tensor) -> Tensor:
    """Reconstructions of images uint8 (B, 3, S, S), on the CPU.

    Raises:
        UserError: if one is not finite.
    """
    done = []
    for batch in track(images.split(BATCH), "images with words or faces, batches"):
        with torch.inference_mode(), full_precision(tokenizer.last_layer.device):
            image = tokenizer(from_uint8(batch).to(tokenizer.last_layer.device))[0].image.float()
        if not image.isfinite().all():
            raise UserError(f"the reconstructions of {run} are not finite: train it again")
        done.append(to_uint8(image).cpu())
    return torch.cat(done)


def read_words(
    reconstruct: Reconstruct, side: int, words: int, heights: Sequence[int], seed: int, reader: Reader
) -> dict[int, list[ReadWord]]:
    """Words at each height in pixels, read in images of a side and in their reconstructions."""
    chosen = choose_words(words, max(heights), side, seed)
    return {height: _read(chosen, place_words(chosen, height, side, seed), reconstruct, reader) for height in heights}


def _read(words: Sequence[Word], placed: Placed, reconstruct: Reconstruct, reader: Reader) -> list[ReadWord]:
    crops = [placed.crops(images) for images in (placed.images, reconstruct(placed.images))]
    texts = [reader([crop.permute(1, 2, 0).numpy() for crop in one]) for one in crops]
    return [
        ReadWord(word.text, *columns)
        for word, *columns in zip(words, crops[0], texts[0], crops[1], texts[1], strict=True)
    ]


def text_row(height: int, words: Sequence[ReadWord]) -> TextRow:
    """Scores of the words of one height."""
    written = [word.written for word in words]
    original = text_scores([word.read_original for word in words], written)
    found = text_scores([word.read for word in words], written)
    return {
        "pixels": height,
        "n": len(words),
        "original_accuracy": original.accuracy,
        "original_similarity": original.similarity,
        "accuracy": found.accuracy,
        "similarity": found.similarity,
    }


def face_pairs(
    reconstruct: Reconstruct, side: int, portraits: Sequence[Image.Image], sizes: Sequence[int]
) -> dict[int, list[tuple[Tensor, Tensor]]]:
    """Crops of each face at each size in pixels, in images of a side and in their reconstructions."""
    pairs = {}
    for size in sizes:
        placed = place_faces(portraits, size, side)
        crops = placed.crops(placed.images), placed.crops(reconstruct(placed.images))
        pairs[size] = list(zip(*crops, strict=True))
    return pairs


def face_row(pixels: int, pairs: Sequence[tuple[Tensor, Tensor]], extractor: Extractor) -> FaceRow:
    """Scores of the faces of one size."""
    scores = face_scores(*(_embedded(crops, extractor) for crops in zip(*pairs, strict=True)))
    return FaceRow(pixels=pixels, n=len(pairs), **scores._asdict())


def _embedded(crops: Sequence[Tensor], extractor: Extractor) -> Tensor:
    batches = torch.stack(list(crops)).split(BATCH)
    return torch.cat([extractor(batch.to(extractor.device)).pooled.cpu() for batch in batches])


def save(run: Path, found: Fidelities) -> Path:
    """Write `fidelity.json` and the pictures into the directory of a run; returns the path of the first."""
    path = measuring.save(run, FIDELITY, found.result)
    if found.words:
        draw_words(found.words, path.with_name("fidelity_text.png"))
    if found.faces:
        draw_faces(found.faces, path.with_name("fidelity_faces.png"))
    return path


def work(given: Namespace) -> None:
    """Measure, write the files, and print tables."""
    device = best_device()
    found = measure(
        given.run,
        given.words,
        given.word_heights,
        given.faces,
        given.face_sides,
        lambda: load_extractor(given.extractor, given.weights, device),  # only for a run that is there
        given.seed,
        device,
    )
    print_tables(tables(found.result))
    print(f"all results: {save(given.run, found)}")


def main(arguments: list[str] | None = None) -> None:
    """Run the program."""
    parser = new_parser("commands.fidelity", __doc__)
    parser.add_argument("--run", type=Path, required=True, help="run of a tokenizer: runs/photos/tokenizer/vq")
    parser.add_argument("--words", type=int, default=WORDS, help="words of each size; 0 leaves text out")
    parser.add_argument(
        "--word-heights", type=float, nargs="+", default=[], help="shares of the image's side; by default 1/32 … 1/4"
    )
    parser.add_argument(
        "--extractor",
        default=MEASURES,
        help="network that embeds faces: inception, dinov2_base …; the default is an "
        "ImageNet classifier of the extra `vision`",
    )
    parser.add_argument("--weights", type=Path, help="file of the extractor; by default the one of `make weights`")
    parser.add_argument("--faces", type=Path, help="folder of faces; by default 100 small ones inside scikit-image")
    parser.add_argument(
        "--face-sides", type=float, nargs="+", default=[], help="shares of the image's side; by default 1/16 … 1/2"
    )
    parser.add_argument("--seed", type=int, default=0, help="of words, places and colours")
    run(parser, work, arguments)


if __name__ == "__main__":
    main()
