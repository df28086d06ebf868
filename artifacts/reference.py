"""Reference files: statistics of real images, to which gFID and rFID are distances.

A file is an npz of ``mu`` (D,), ``sigma`` (D, D) and, for Inception, ``mu_s`` (2023,), ``sigma_s`` (2023, 2023) of
sFID; ``arr_0`` uint8 (n, H, W, 3) holds images for precision and recall. ADM publishes this format, and its evaluator
reads our files. Ours add ``protocol``, a JSON text (:class:`ReferenceProtocol`); a file without it counts as
Inception's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import torch

from artifacts import npz
from artifacts.samples import SamplesFile
from polytoken import records
from polytoken.errors import MissingFileError, UserError
from polytoken.files import file_sha256
from polytoken.metrics.extractor import Extractor
from polytoken.metrics.frechet import Gaussian, check_covariance
from polytoken.metrics.image_metrics import Kind, Target
from polytoken.metrics.image_set import Use

BATCH = 64

BELONGS: dict[Use, tuple[Kind, ...]] = {"generation": ("adm train", "train"), "reconstruction": ("validation",)}
WRONG: dict[Use, str] = {
    "generation": "gFID is a distance to training images (ADM's reference, or `make reference SPLIT=train`)",
    "reconstruction": "rFID is a distance to the very validation images that were fed in (`make reference`)",
}


@dataclass(frozen=True)
class ReferenceProtocol:
    """Protocol of the measurement in a reference file.

    Args:
        kind: the images: a preset's split; ``adm train`` is a file of ADM's arrays without a protocol; ``unknown`` one
            of ``mu`` and ``sigma`` alone.
        source: the origin of the images, in words.
        number: images in mean and covariance; None if unknown.
        image_size: pixels a side of the images; None if unknown.
        extractor: name of the network.
        extractor_sha256: digest of its weights.
        resize: the resizing before the network.
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
        protocol: what was measured, and how.
        features: Gaussian of the pooled features.
        spatial: Gaussian of the maps, for sFID; None if the file has none.
        num_images: images in ``arr_0``, which ``SamplesFile(path)`` reads; 0 without images.
    """

    path: Path
    sha256: str
    protocol: ReferenceProtocol
    features: Gaussian
    spatial: Gaussian | None
    num_images: int

    @classmethod
    def read(cls, path: str | Path) -> Reference:
        """Read a file; nothing in it is ever unpickled.

        Raises:
            MissingFileError: if the file does not exist.
            UserError: if it is cut short, pickled, lacks an array, or holds wrong shapes, NaN, or no covariances.
        """
        path = Path(path)
        if not path.is_file():
            raise MissingFileError(f"no reference at {path}: `make reference` writes one, or name ADM's npz")
        remedy = (
            "Expected an npz of mu, sigma and, for sFID, mu_s, sigma_s: fetch it again, or write one with "
            "`make reference`"
        )
        with npz.reading(path, "is not a reference file", remedy) as archive:
            names = npz.names(archive)
            if "mu" not in names and "arr_0" in names:
                raise UserError("it holds images and no statistics of them (mu, sigma)")
            num_images, height, width, _ = npz.image_shape(archive, "arr_0") if "arr_0" in names else (0, 0, 0, 3)
            protocol = _protocol(archive, names, height if num_images and height == width else None)
            features = _gaussian(archive, "mu", "sigma", protocol.number)
            spatial = _gaussian(archive, "mu_s", "sigma_s", protocol.number) if "mu_s" in names else None
        return cls(path, file_sha256(path), protocol, features, spatial, num_images)

    def require(self, use: Use, forced: bool = False) -> str | None:
        """Check that the images are those of published protocols; if forced, return a note instead of raising.

        Raises:
            UserError: if its images are of another split than published metrics of that use, unless forced.
        """
        kind = self.protocol.kind
        if kind in BELONGS[use]:
            return None
        images = "does not say which images it is of" if kind == "unknown" else f"is of {kind} images"
        sentence = f"{WRONG[use]}, and {self.path} {images}"
        if not forced:
            raise UserError(f"{sentence}: name the other file, or force it")
        return f"{sentence}: the metric compares with no published one"

    def require_same(self, extractor: Extractor, image_size: tuple[int, int] | None = None) -> None:
        """Check that the file was measured by this network, on images of this size (height, width).

        Raises:
            UserError: naming both sides.
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
    protocol: ReferenceProtocol,
    features: Gaussian,
    spatial: Gaussian | None = None,
    images: Iterable[np.ndarray] = (),
    num_images: int = 0,
) -> None:
    """Write a reference file, which ADM's evaluator reads as well, atomically.

    Args:
        path: the npz.
        protocol: what was measured.
        features: Gaussian of the pooled features.
        spatial: Gaussian of the maps.
        images: pieces uint8 (·, H, W, 3) of ``arr_0``; H = W = image_size.
        num_images: images in all pieces; 0 writes no ``arr_0``.

    Raises:
        UserError: if the pieces hold another number or size of images.
    """
    arrays = {"mu": features.mean.numpy(), "sigma": features.covariance.numpy()}
    if spatial is not None:
        arrays |= {"mu_s": spatial.mean.numpy(), "sigma_s": spatial.covariance.numpy()}
    arrays["protocol"] = np.array(records.encode(protocol).decode())
    side = protocol.image_size or 0
    npz.write(path, arrays, images, (num_images, side, side, 3))


def _gaussian(archive: ZipFile, mean: str, covariance: str, number: int | None) -> Gaussian:
    first, second = npz.read_array(archive, mean), npz.read_array(archive, covariance)
    if first.ndim != 1 or second.shape != first.shape * 2 or first.dtype.kind != "f" or second.dtype.kind != "f":
        raise UserError(f"{mean} is {first.dtype} {first.shape} and {covariance} {second.dtype} {second.shape}")
    for name, array in ((mean, first), (covariance, second)):
        if not np.isfinite(array).all():
            raise UserError(f"{name} is not finite")
    sigma = torch.from_numpy(second.astype(np.float64))
    if number is not None and number < 2:
        raise UserError(f"its protocol says {number} images, which have no covariance")
    check_covariance(sigma, covariance)
    return Gaussian(number, torch.from_numpy(first.astype(np.float64)), (sigma + sigma.T) / 2)


def _protocol(archive: ZipFile, names: set[str], image_size: int | None) -> ReferenceProtocol:
    """The recorded protocol; for a file without one, the protocol inferred from its arrays."""
    if "protocol" not in names:
        adm = {"mu_s", "sigma_s", "arr_0"} <= names
        source = "ADM's reference batch" if adm else "not said"
        return ReferenceProtocol("adm train" if adm else "unknown", source, None, image_size, "inception", None, None)
    text = str(npz.read_array(archive, "protocol"))
    protocol = records.decode(text.encode(), ReferenceProtocol, "its protocol")
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
    """The target in a reference file, ADM's or one of ``make reference``; images in it, if any, are measured.

    Raises:
        MissingFileError: if the file does not exist.
        UserError: if it is damaged, of another network or size, or (unless forced) of another split than published
            metrics of this use.
    """
    reference = Reference.read(path)
    reference.require_same(extractor, image_size)
    note = reference.require(use, forced)
    rows = None
    if reference.num_images:  # every rank measures all of them, so ImageSet, which sums over the ranks, does not apply
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
