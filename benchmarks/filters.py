"""Text and face fidelity of a filter in place of a tokenizer, as a scale for `commands.fidelity`.

    python -m benchmarks.filters [--words 100]

The filter takes means over 2 × 2, 4 × 4 or 8 × 8 pixels and enlarges them bicubically. Images have 256 px; the sizes,
the reader and the extractor are the defaults of `commands.fidelity`.
"""

from __future__ import annotations

import argparse
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.machine import Result, write_results
from commands.fidelity import FACE_SIDES, WORD_HEIGHTS, Reader, Reconstruct, face_pairs, face_row, read_words, text_row
from commands.placed import faces_in
from polytoken.images import from_uint8, to_uint8
from polytoken.metrics.extractor import Extractor
from polytoken.metrics.extractors import load_extractor
from polytoken.metrics.word_reader import WordReader
from polytoken.teachers.efficientnet import MEASURES

SIDE = 256
FACTORS = (2, 4, 8)


def filtered(factor: int, images: Tensor) -> Tensor:
    """Shrink images uint8 (B, 3, S, S) to means over factor × factor pixels, and enlarge them bicubically."""
    small = functional.avg_pool2d(from_uint8(images), factor)
    return to_uint8(functional.interpolate(small, scale_factor=factor, mode="bicubic", align_corners=False))


def measure(reconstruct: Reconstruct, name: str, words: int, reader: Reader, extractor: Extractor) -> list[Result]:
    """Share of words read, which that of the originals bounds, and of faces identified, for each size."""
    heights, sides = ([round(share * SIDE) for share in shares] for shares in (WORD_HEIGHTS, FACE_SIDES))
    results = []
    for height, read in read_words(reconstruct, SIDE, words, heights, 0, reader).items():
        row = text_row(height, read)
        results.append(Result(f"{name}/text/{height}px", row["accuracy"], "share", bound=row["original_accuracy"]))
    for size, pairs in face_pairs(reconstruct, SIDE, faces_in(None), sides).items():
        identified = face_row(size, pairs, extractor)["identified"]
        results.append(Result(f"{name}/faces/{size}px", identified, "share", bound=1.0))
    return results


def main() -> None:
    """Measure all filters."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--words", type=int, default=100, help="words of each size (default: %(default)s)")
    arguments = parser.parse_args()
    reader, extractor = WordReader(), load_extractor(MEASURES, None, torch.device("cpu"))
    results = [
        result
        for factor in FACTORS
        for result in measure(partial(filtered, factor), f"filter{factor}", arguments.words, reader, extractor)
    ]
    print(f"written to {write_results('filters', results)}")


if __name__ == "__main__":
    main()
