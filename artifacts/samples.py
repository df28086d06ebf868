"""Files of generated images in the format that ADM's evaluator reads: written and read in pieces, never whole.

An npz with `arr_0` uint8 (n, H, W, 3) and, if the labels are known, `arr_1` int64 (n,). 50,000 images of 256 px are
9.8 GB, so both directions stream; nothing in a file is ever unpickled.
"""

import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import numpy as np

from polytoken.errors import MissingFileError, UserError
from polytoken.files import file_sha256, replacing

IMAGES, LABELS = "arr_0.npy", "arr_1.npy"
CHUNK = 1 << 24

# What zipfile and numpy raise on files that are cut short, damaged, or no npz at all.
BROKEN = (zipfile.BadZipFile, EOFError, ValueError, KeyError, NotImplementedError)


class SamplesFile:
    """An npz of images, its header checked; images are read by :meth:`batches`.

    Attributes:
        path: The file.
        labels: int64 (n,), or None if it has none.
        image_size: Height and width in pixels.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is cut short, pickled, or holds something else than uint8 images and integer labels.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise MissingFileError(f"no samples at {self.path}: `make sample` writes some, or name another npz.")
        try:
            with zipfile.ZipFile(self.path) as archive:
                names = archive.namelist()
                if IMAGES not in names:
                    raise UserError(f"it has no array arr_0, only {', '.join(names) or 'nothing'}")
                with archive.open(IMAGES) as member:
                    self._shape = _image_header(member)
                self.labels = self._read_labels(archive) if LABELS in names else None
        except BROKEN as error:
            raise UserError(
                f"{self.path} is not a file of samples: {_sentence(error)}. Expected an npz of arr_0 uint8 "
                "(n, H, W, 3) and, where labels are known, arr_1 integers (n,)."
            ) from error

    def __len__(self) -> int:
        return self._shape[0]

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self._shape[1], self._shape[2]

    def batches(self, size: int) -> Iterator[np.ndarray]:
        """Yield uint8 (≤ size, H, W, 3), in order.

        Raises:
            ValueError: The file turns out to be damaged, or no value of it is above 1.
        """
        row, brightest = int(np.prod(self._shape[1:])), 0
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(IMAGES) as member:
                _image_header(member)
                for start in range(0, len(self), size):
                    count = min(size, len(self) - start)
                    data = member.read(count * row)
                    if len(data) < count * row:
                        raise UserError(f"it ends within image {start + len(data) // row} of {len(self)}")
                    images = np.frombuffer(data, np.uint8).reshape(count, *self._shape[1:])
                    brightest = max(brightest, int(images.max()))
                    yield images
                if member.read(1):
                    raise UserError(f"it holds more than the {len(self)} images its header promises")
        except BROKEN as error:
            raise UserError(f"{self.path} is damaged: {_sentence(error)}. Write it anew.") from error
        if brightest <= 1:
            raise UserError(
                f"{self.path} holds only black images, no value being above 1 of 255: images in [0, 1] must be "
                "multiplied by 255 before they become uint8."
            )

    def digest(self) -> str:
        """Return the SHA-256 of the file, in hex."""
        return file_sha256(self.path)

    def _read_labels(self, archive: zipfile.ZipFile) -> np.ndarray:
        with archive.open(LABELS) as member:
            labels = np.lib.format.read_array(member, allow_pickle=False)
        if labels.dtype.kind not in "iu" or labels.shape != self._shape[:1]:
            raise UserError(f"arr_1 is {labels.dtype} {labels.shape} for {len(self)} images")
        if len(labels) and labels.min() < 0:
            raise UserError(f"arr_1 holds the negative label {labels.min()}")
        return labels.astype(np.int64)


def write_samples(path: Path, pieces: Iterable[np.ndarray], labels: np.ndarray, image_shape: tuple[int, ...]) -> None:
    """Write images piece by piece, then their labels; a reader sees the whole file or none.

    Args:
        path: The npz.
        pieces: uint8 (·, H, W, 3), which together are as many as there are labels.
        labels: integers (n,).
        image_shape: (H, W, 3).

    Raises:
        ValueError: The pieces hold more or fewer images than there are labels.
    """
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(labels), *image_shape)}
    written = 0
    with replacing(path) as unfinished, zipfile.ZipFile(unfinished, "w", allowZip64=True) as archive:
        with archive.open(IMAGES, "w", force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(member, header)
            for piece in pieces:
                if piece.dtype != np.uint8 or piece.shape[1:] != tuple(image_shape):
                    raise UserError(f"images are {piece.dtype} {piece.shape[1:]}, expected uint8 {image_shape}.")
                member.write(np.ascontiguousarray(piece).data)
                written += len(piece)
        if written != len(labels):
            raise UserError(f"{written} images for {len(labels)} labels: nothing was written to {path}.")
        with archive.open(LABELS, "w") as member:
            np.lib.format.write_array(member, labels.astype(np.int64), allow_pickle=False)


def _image_header(member: IO[bytes]) -> tuple[int, ...]:
    version = np.lib.format.read_magic(member)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran_order, dtype = read(member)
    if dtype.hasobject:
        raise UserError("arr_0 is a pickle, which is not read")
    if dtype != np.uint8:
        raise UserError(f"arr_0 is {dtype}: images must be uint8 from 0 to 255, neither floats nor in [-1, 1]")
    if len(shape) != 4 or shape[-1] != 3 or fortran_order or 0 in shape:
        raise UserError(f"arr_0 has the shape {shape}{' in Fortran order' if fortran_order else ''}")
    return shape


def _sentence(error: Exception) -> str:
    text = str(error) or type(error).__name__
    return text.rstrip(".")
