"""Files of generated images in the format that ADM's evaluator reads.

An npz with `arr_0` uint8 (n, H, W, 3) and, if the labels are known, `arr_1` int64 (n,). 50,000 images of 256 px take
9.8 GB, so images are read and written in chunks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from artifacts import npz
from polytoken.errors import MissingFileError, UserError
from polytoken.files import file_sha256

IMAGES, LABELS = "arr_0", "arr_1"


class SamplesFile:
    """An npz of images, its headers checked; :meth:`batches` reads the images.

    Attributes:
        path: The file.
        labels: int64 (n,), or None if it has none.
        image_size: Height and width in pixels.

    Args:
        path: The file.

    Raises:
        MissingFileError: There is no such file.
        UserError: It is cut short, pickled, or holds something else than uint8 images and integer labels.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise MissingFileError(f"no samples at {self.path}: `make sample` writes some, or name another npz")
        remedy = "Expected an npz of arr_0 uint8 (n, H, W, 3) and, where labels are known, arr_1 integers (n,)."
        with npz.reading(self.path, "is not a file of samples", remedy) as archive:
            self._count, *size, _ = npz.image_shape(archive, IMAGES)
            self.image_size = (size[0], size[1])
            self.labels = _labels(archive, self._count) if LABELS in npz.names(archive) else None

    def __len__(self) -> int:
        return self._count

    def batches(self, size: int) -> Iterator[np.ndarray]:
        """Yield uint8 (≤ size, H, W, 3), in order.

        Raises:
            UserError: The file turns out to be damaged, or none of its values is above 1.
        """
        brightest = 0
        with npz.reading(self.path, "is damaged", "Write it again.") as archive:
            for images in npz.read_images(archive, IMAGES, size):
                brightest = max(brightest, int(images.max()))
                yield images
        if brightest <= 1:
            raise UserError(
                f"{self.path} holds only black images, no value being above 1 of 255: images in [0, 1] must be "
                "multiplied by 255 before they become uint8"
            )

    def digest(self) -> str:
        """Return the SHA-256 of the file, in hex."""
        return file_sha256(self.path)


def write_samples(path: Path, pieces: Iterable[np.ndarray], labels: np.ndarray, image_shape: tuple[int, ...]) -> None:
    """Write images piece by piece, then their labels, atomically.

    Args:
        path: The npz.
        pieces: uint8 (·, H, W, 3), which together are as many as there are labels.
        labels: integers (n,).
        image_shape: (H, W, 3).

    Raises:
        UserError: The pieces hold more or fewer images than there are labels.
    """
    npz.write(path, {LABELS: labels.astype(np.int64)}, pieces, (len(labels), *image_shape))


def _labels(archive: npz.ZipFile, count: int) -> np.ndarray:
    labels = npz.read_array(archive, LABELS)
    if labels.dtype.kind not in "iu" or labels.shape != (count,):
        raise UserError(f"{LABELS} is {labels.dtype} {labels.shape} for {count} images")
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or highest > np.iinfo(np.int64).max:
        raise UserError(f"{LABELS} holds the label {lowest if lowest < 0 else highest}: classes are numbered from 0")
    return labels.astype(np.int64)
