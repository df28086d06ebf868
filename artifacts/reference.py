"""Statistics of real images in a file, as ADM publishes them: what gFID and rFID are distances to.

A file is an npz of ``mu`` (D,), ``sigma`` (D, D) and, of Inception, ``mu_s`` (2023,), ``sigma_s`` (2023, 2023) for
sFID; ``arr_0`` uint8 (n, H, W, 3) holds images for precision and recall. That is what ADM's evaluator reads, so it
reads our files too. Ours add ``protocol``, a string of JSON that says what was measured and how; a file without it is
taken to be Inception's.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from artifacts.samples import SamplesFile
from polytoken.errors import MissingFileError, UserError
from polytoken.files import file_sha256, replacing
from polytoken.metrics.extractor import Extractor
from polytoken.metrics.frechet import Gaussian
from polytoken.metrics.generation import Kind, Target, Use

BATCH = 64

# what zipfile and numpy raise on files that are cut short, damaged, pickled, or no npz at all
BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, KeyError, TypeError, NotImplementedError)

BELONGS: dict[Use, tuple[Kind, ...]] = {"generation": ("adm train", "train"), "reconstruction": ("validation",)}
WRONG: dict[Use, str] = {
    "generation": "gFID is a distance to training images (ADM's reference, or `make reference SPLIT=train`)",
    "reconstruction": "rFID is a distance to the very validation images that were fed in (`make reference`)",
}


@dataclass(frozen=True)
class Protocol:
    """What was measured, and how.

    Args:
        kind: which images: a preset's split; ``adm train`` is a file of ADM's arrays that says no more; ``unknown`` one
            of ``mu`` and ``sigma`` alone.
        source: where the images come from, in words.
        number: images that mean and covariance are of; None if the file does not say.
        image_size: pixels a side of the images; None if the file does not say.
        extractor: name of the network.
        extractor_sha256: digest of its weights.
        resize: what became of the images before the network saw them.
    """

    kind: Kind
    source: str
    number: int | None
    image_size: int | None
    extractor: str
    extractor_sha256: str | None
    resize: str | None


@dataclass(frozen=True)
class Reference:
    """Statistics from a file of :func:`write_reference` or ADM's.

    Attributes:
        path: the file.
        sha256: its digest.
        protocol: what it says of itself.
        features: Gaussian of the pooled features.
        spatial: Gaussian of the maps, for sFID; None if the file has none.
        num_images: images in ``arr_0``, which ``SamplesFile(path)`` reads; 0 if there are none.
    """

    path: Path
    sha256: str
    protocol: Protocol
    features: Gaussian
    spatial: Gaussian | None
    num_images: int

    @classmethod
    def read(cls, path: str | Path) -> Reference:
        """Read a file; nothing in it is ever unpickled.

        Raises:
            FileNotFoundError: if there is none.
            ValueError: if it is cut short, pickled, lacks an array, or holds arrays of wrong shapes or NaN.
        """
        path = Path(path)
        if not path.is_file():
            raise MissingFileError(f"no reference at {path}: `make reference` writes one, or name ADM's npz")
        try:
            with zipfile.ZipFile(path) as archive:
                names = {name.removesuffix(".npy") for name in archive.namelist()}
                if "mu" not in names and "arr_0" in names:
                    raise UserError("it holds images and no statistics of them (mu, sigma)")
                num_images, image_size = _images(archive) if "arr_0" in names else (0, None)
                protocol = _protocol(archive, names, image_size)
                features = _gaussian(archive, "mu", "sigma", protocol.number)
                spatial = _gaussian(archive, "mu_s", "sigma_s", protocol.number) if "mu_s" in names else None
        except BROKEN as error:
            reason = str(error).rstrip(".") or type(error).__name__
            raise UserError(
                f"{path} is no reference file: {reason}. Expected an npz of mu, sigma and, for sFID, mu_s, sigma_s: "
                "fetch it again, or write one with `make reference`"
            ) from error
        return cls(path, file_sha256(path), protocol, features, spatial, num_images)

    def require(self, use: Use, forced: bool = False) -> str | None:
        """Refuse a file of images that a figure is no distance to; if forced, return what to say of it.

        Raises:
            ValueError: if its images are of another split than published figures of that use, unless forced.
        """
        kind = self.protocol.kind
        if kind in BELONGS[use]:
            return None
        images = "does not say which images it is of" if kind == "unknown" else f"is of {kind} images"
        sentence = f"{WRONG[use]}, and {self.path} {images}"
        if not forced:
            raise UserError(f"{sentence}: name the other file, or force it")
        return f"{sentence}: the figure compares with no published one"

    def require_same(self, extractor: Extractor, image_size: tuple[int, int] | None = None) -> None:
        """Refuse a file that was measured by another network, or of images of another size (height, width).

        Raises:
            ValueError: naming both sides.
        """
        own = self.protocol
        if own.extractor != extractor.name:
            raise UserError(f"{self.path} was measured by {own.extractor}, not by {extractor.name}: {_REMEASURE}")
        if own.extractor_sha256 and extractor.sha256 and own.extractor_sha256 != extractor.sha256:
            raise UserError(
                f"{self.path} was measured by a {own.extractor} of the SHA-256 {own.extractor_sha256}, and this one "
                f"has {extractor.sha256}: {_REMEASURE}"
            )
        if own.resize and own.resize != extractor.resize:
            raise UserError(
                f"{self.path} was measured with resize {own.resize!r}, not {extractor.resize!r}: {_REMEASURE}"
            )
        if len(self.features.mean) != extractor.num_features:
            raise UserError(
                f"{self.path} holds {len(self.features.mean)} features, and {extractor.name} has "
                f"{extractor.num_features}: {_REMEASURE}"
            )
        if self.spatial is not None and extractor.num_spatial not in (None, len(self.spatial.mean)):
            raise UserError(
                f"{self.path} holds {len(self.spatial.mean)} spatial features, and {extractor.name} has "
                f"{extractor.num_spatial}: {_REMEASURE}"
            )
        if image_size is not None and own.image_size is not None and image_size != (own.image_size,) * 2:
            height, width = image_size
            raise UserError(
                f"{self.path} is of images of {own.image_size} px, and these have {height} × {width}: name the "
                "reference of that size"
            )


_REMEASURE = "write one of it with `make reference`"


def write_reference(
    path: Path,
    protocol: Protocol,
    features: Gaussian,
    spatial: Gaussian | None = None,
    images: Iterable[np.ndarray] = (),
    num_images: int = 0,
) -> None:
    """Write a file that ADM's evaluator reads as well; a reader sees the whole file or none.

    Args:
        path: the npz.
        protocol: what was measured.
        features: Gaussian of the pooled features.
        spatial: Gaussian of the maps.
        images: pieces uint8 (·, H, W, 3) of ``arr_0``, at most a few in memory at a time; H = W = image_size.
        num_images: how many they are together; 0 writes no ``arr_0``.

    Raises:
        ValueError: if the pieces hold another number or size of images.
    """
    arrays = {"mu": features.mean.numpy(), "sigma": features.covariance.numpy()}
    if spatial is not None:
        arrays |= {"mu_s": spatial.mean.numpy(), "sigma_s": spatial.covariance.numpy()}
    arrays["protocol"] = np.array(json.dumps(asdict(protocol)))
    with replacing(path) as unfinished, zipfile.ZipFile(unfinished, "w", allowZip64=True) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
        if num_images:
            with archive.open("arr_0.npy", "w", force_zip64=True) as member:
                _write_images(member, images, (num_images, protocol.image_size, protocol.image_size, 3))


def _write_images(member: IO[bytes], pieces: Iterable[np.ndarray], shape: tuple[int | None, ...]) -> None:
    np.lib.format.write_array_header_1_0(member, {"descr": "|u1", "fortran_order": False, "shape": shape})
    written = 0
    for piece in pieces:
        if piece.dtype != np.uint8 or piece.shape[1:] != shape[1:]:
            raise UserError(f"images are {piece.dtype} {piece.shape[1:]}, expected uint8 {shape[1:]}")
        member.write(np.ascontiguousarray(piece).data)
        written += len(piece)
    if written != shape[0]:
        raise UserError(f"{written} images came where {shape[0]} were announced")


def _array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    if f"{name}.npy" not in archive.namelist():
        raise UserError(f"it lacks the array {name}")
    with archive.open(f"{name}.npy") as member:
        return np.lib.format.read_array(member, allow_pickle=False)


def _gaussian(archive: zipfile.ZipFile, mean: str, covariance: str, number: int | None) -> Gaussian:
    first, second = _array(archive, mean), _array(archive, covariance)
    if first.ndim != 1 or second.shape != first.shape * 2 or first.dtype.kind != "f" or second.dtype.kind != "f":
        raise UserError(f"{mean} is {first.dtype} {first.shape} and {covariance} {second.dtype} {second.shape}")
    for name, array in ((mean, first), (covariance, second)):
        if not np.isfinite(array).all():
            raise UserError(f"{name} is not finite")
    sigma = torch.from_numpy(second.astype(np.float64))
    return Gaussian(number, torch.from_numpy(first.astype(np.float64)), (sigma + sigma.T) / 2)


def _images(archive: zipfile.ZipFile) -> tuple[int, int | None]:
    """Number and side of the images in ``arr_0``, from its header and length."""
    with archive.open("arr_0.npy") as member:
        version = np.lib.format.read_magic(member)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(member)
        start = member.tell()
    if dtype != np.uint8 or len(shape) != 4 or shape[-1] != 3:
        raise UserError(f"arr_0 is {dtype} {shape}, and images are uint8 (n, H, W, 3)")
    if archive.getinfo("arr_0.npy").file_size != start + int(np.prod(shape)):
        raise UserError(f"arr_0 does not hold the {shape[0]} images that its header promises")
    return shape[0], shape[1] if shape[1] == shape[2] else None


def _protocol(archive: zipfile.ZipFile, names: set[str], image_size: int | None) -> Protocol:
    """What the file says of itself; of a file without our words, what its arrays tell."""
    if "protocol" not in names:
        adm = {"mu_s", "sigma_s", "arr_0"} <= names
        source = "ADM's reference batch" if adm else "not said"
        return Protocol("adm train" if adm else "unknown", source, None, image_size, "inception", None, None)
    text: Any = json.loads(str(_array(archive, "protocol")))
    protocol = Protocol(**text)
    if image_size is not None and protocol.image_size != image_size:
        raise UserError(f"its images have {image_size} px, and its protocol says {protocol.image_size}")
    return protocol


def target_of_file(
    path: Path,
    extractor: Extractor,
    image_size: tuple[int, int],
    use: Use = "generation",
    forced: bool = False,
) -> Target:
    """A file of statistics: ADM's, or one of ``make reference``; its images, if it has some, are measured.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is damaged, of another network or size, or (unless forced) of a split that figures of this
            use are no distance to.
    """
    reference = Reference.read(path)
    reference.require_same(extractor, image_size)
    note = reference.require(use, forced)
    rows = None
    if reference.num_images:  # every rank measures all of them: no ImageSet, which adds up the ranks
        batches = SamplesFile(path).batches(BATCH)
        rows = torch.cat([extractor(torch.from_numpy(b.copy()).permute(0, 3, 1, 2)).pooled.cpu() for b in batches])
    about = {
        "reference": str(path),
        "reference_sha256": reference.sha256,
        "reference_kind": reference.protocol.kind,
        "reference_n": reference.protocol.number,
        "forced": note is not None,
    }
    few = reference.features.shortage
    notes = tuple(filter(None, (note, few and f"of the reference: {few}")))
    return Target(extractor.name, reference.features, reference.spatial, rows, about, notes)
