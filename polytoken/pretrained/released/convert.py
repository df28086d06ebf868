"""Released checkpoints as models: found or downloaded, converted, and loaded strictly."""

from __future__ import annotations

import logging
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from polytoken.building import build
from polytoken.codec import BlankCodec
from polytoken.errors import MissingFileError, MissingPackageError, UserError, first_line
from polytoken.files import file_sha256
from polytoken.fingerprint import fingerprint
from polytoken.generators.base import Generator
from polytoken.generators.record import GeneratorRecord, Lineage
from polytoken.licence import ReleasedAs
from polytoken.loading import GENERATOR, RELEASED, TOKENIZER, Checkpoint
from polytoken.pipeline import GenerationPipeline
from polytoken.pretrained.released import zoo
from polytoken.pretrained.released.layout import Network, State, shapes_of
from polytoken.pretrained.released.reading import read_released
from polytoken.pretrained.released.release import Release
from polytoken.specs import LatentSpec
from polytoken.tokenizers import Tokenizer

CLASSES = 1000
SHA256 = re.compile(r"[0-9a-f]{64}")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """A released file on this machine.

    Args:
        name: of the release.
        release: its description.
        file: the file.
        companion: the second file of a release that has one.
    """

    name: str
    release: Release
    file: Path
    companion: Path | None = None

    @classmethod
    def find(cls, name: str, file: str | Path | None = None, accept_license: bool = False) -> Source:
        """Find the file of a release, or download it from the hub.

        Raises:
            MissingFileError: if it cannot be had.
            UserError: if there is no such release, or its licence must be accepted first.
        """
        release = zoo.find(name)
        licence = release.licence
        if licence.non_commercial and not accept_license:
            raise UserError(
                f"the weights of {name} are under {licence.name}, which forbids commercial use: pass "
                "accept_license=True (--accept-license) if you agree to it"
            )
        path = Path(file) if file is not None else _download(name, release.repository, release.file)
        return cls(name, release, path, _companion(name, release, path if file is not None else None))

    def read(self) -> State:
        """Read the weights; UserError if the file is damaged or of another kind."""
        remedy = "name a file of this release, or download it again"
        state, place = read_released(self.file, remedy, self.release.places)
        _announce(self.name, self.release.licence.name, self.release.source)
        log.info("%s: weights are those at %s", self.file, place)
        if self.companion is None or self.release.companion is None:
            return state
        remedy = f"put {_url(self.release.companion.repository, self.companion.name)} beside {self.file.name}"
        beside, _ = read_released(self.companion, remedy, ((),))
        return {**state, **{f"{self.companion.name}:{key}": tensor for key, tensor in beside.items()}}


def load_released(
    name: str,
    file: str | Path | None = None,
    tokenizer_file: str | Path | None = None,
    accept_license: bool = False,
) -> Tokenizer | GenerationPipeline:
    """Load a released checkpoint: frozen, in eval mode, on the CPU.

    Args:
        name: as docs/model_zoo.md lists it, e.g. ``llamagen/vq_ds16_c2i``; a generator comes with its tokenizer.
        file: the released file, or one of your own training with the released code; None downloads it.
        tokenizer_file: likewise that of a generator's tokenizer.
        accept_license: True to load weights whose licence forbids commercial use.

    Raises:
        MissingFileError: if a file does not exist or cannot be downloaded.
        UserError: if a file is damaged, of another architecture, or its licence is not accepted.
    """
    source = Source.find(name, file, accept_license)
    release = source.release
    if release.tokenizer is None:
        return tokenizer_checkpoint(source, release.image_size).tokenizer()
    of_tokenizer = Source.find(release.tokenizer, tokenizer_file, accept_license)
    tokenizer = tokenizer_checkpoint(of_tokenizer, release.image_size).tokenizer()
    checkpoint = generator_checkpoint(source, tokenizer, release.tokenizer)
    sha256 = checkpoint.content[RELEASED]["sha256"]
    return GenerationPipeline.of(checkpoint, tokenizer, name, release.tokenizer, sha256=sha256)


def tokenizer_checkpoint(source: Source, image_size: int) -> Checkpoint:
    """Convert a released tokenizer to the content of a checkpoint.

    Args:
        source: its file.
        image_size: pixels a side of the images that its codes describe.
    """
    state = source.read()
    with _like(source):
        network = source.release.describe(state, image_size)
        empty = empty_tokenizer(network)
        _check_kind(source.release, empty)
        weights = _converted(source, network, state, empty)
    return _checkpoint(source, TOKENIZER, network, weights, {})


def generator_checkpoint(source: Source, tokenizer: Tokenizer, tokenizer_run: str) -> Checkpoint:
    """Convert a released generator to the content of a checkpoint.

    Args:
        source: its file.
        tokenizer: that of its codes.
        tokenizer_run: name or place of that tokenizer, for the record.
    """
    state = source.read()
    with _like(source):
        network = source.release.describe(state, source.release.image_size)
    if network.latents is not None:
        _check_latents(source, network.latents.shape, tokenizer, tokenizer_run)
    with _like(source):
        weights = _converted(source, network, state, empty_generator(network, tokenizer))
    spec, mark = tokenizer.spec, fingerprint(tokenizer)
    record = GeneratorRecord(
        spec=spec,
        full_spec=spec,
        sub_codes=tuple(range(spec.num_sub_codes)) if spec else (),
        tokenizer_run=tokenizer_run,
        tokenizer_fingerprint=mark,
        num_classes=CLASSES,
        class_to_idx={wnid: label for label, wnid in enumerate(imagenet_classes())},
        lineage=Lineage(tokenizer_run, mark, store=source.name),
        latents=network.latents,
    )
    return _checkpoint(source, GENERATOR, network, weights, {GENERATOR: record.to_plain()})


def empty_tokenizer(network: Network) -> Tokenizer:
    """Build a described tokenizer on the meta device, without weights."""
    with torch.device("meta"):
        return build(network.section, Tokenizer, "the converter")  # type: ignore[type-abstract]


def empty_generator(network: Network, tokenizer: Tokenizer) -> Generator:
    """Build a described generator for a tokenizer on the meta device, without weights."""
    with torch.device("meta"):
        generator: Generator = build(network.section, Generator, "the converter")  # type: ignore[type-abstract]
        spec = network.latents or tokenizer.spec
        assert spec is not None, "a generator of codes has a tokenizer with codes"
        scales = 1 if isinstance(spec, LatentSpec) else len(spec.scales)
        generator.connect(spec, CLASSES, BlankCodec(tokenizer.latent_shape, scales))
    return generator


def imagenet_classes() -> list[str]:
    """Return the names of ImageNet's classes in the order of their labels: sorted WordNet ids.

    Raises:
        UserError: if timm, which lists them, is not installed.
    """
    try:
        from timm.data import ImageNetInfo  # noqa: PLC0415 - a package of the extra `suite`
    except ImportError as error:
        raise MissingPackageError.of("the list of ImageNet's classes", error) from error
    return ImageNetInfo().label_names()


@cache
def _announce(name: str, licence: str, source: str) -> None:
    """Print the licence of weights, once in a process."""
    print(f"{name} ({source}): the weights are under the licence {licence}", file=sys.stderr)


@contextmanager
def _like(source: Source) -> Iterator[None]:
    """Add the file, and the release it was read as, to an error."""
    try:
        yield
    except MissingPackageError:  # which says nothing about the file
        raise
    except UserError as error:
        raise UserError(f"{source.file} is no checkpoint like {source.name}: {error}") from error


def _converted(source: Source, network: Network, state: State, empty: nn.Module) -> dict[str, Tensor]:
    weights = {
        key: tensor.float() if tensor.is_floating_point() else tensor
        for key, tensor in network.layout.to_ours(state, shapes_of(empty.state_dict())).items()
    }
    for key, tensor in weights.items():
        if not tensor.is_floating_point():
            raise UserError(f"{key} is {tensor.dtype}, and weights are floats")
        if not bool(tensor.isfinite().all()):
            raise UserError(f"{key} is not finite")
    if left_out := network.layout.left_out(state):
        listed = ", ".join(f"{pattern} ({count})" for pattern, count in Counter(left_out.values()).items())
        log.info("%s: left out, since the network here has no such entries: %s", source.file, listed)
    return weights


def _checkpoint(
    source: Source, name: str, network: Network, weights: Mapping[str, Tensor], more: Mapping[str, Any]
) -> Checkpoint:
    licence = source.release.licence
    origin = ReleasedAs(
        name=source.name,
        source=source.release.source,
        licence=licence.name,
        licence_on_hub=licence.hub,
        non_commercial=licence.non_commercial,
        sha256=file_sha256(source.file),
    )
    more = {RELEASED: msgspec.to_builtins(origin), **more}
    return Checkpoint.of_network(source.file, name, network.section, weights, 0, more)


def _companion(name: str, release: Release, file: Path | None) -> Path | None:
    """Return the second file of a release: beside the first one, or downloaded like that."""
    if release.companion is None:
        return None
    if file is not None:
        return file.with_name(release.companion.file)
    return _download(name, release.companion.repository, release.companion.file)


def _download(name: str, repository: str | None, file: str | None) -> Path:
    if repository is None or file is None:
        raise MissingFileError(f"the authors released no weights of {name}: name a file of your own training as file=")
    where = _url(repository, file)
    try:
        from huggingface_hub import hf_hub_download  # noqa: PLC0415 - not needed for a local file
    except ImportError as error:
        raise UserError(f"huggingface_hub is not installed: download {where} yourself, and name it as file=") from error
    try:
        path = Path(hf_hub_download(repository, file))
    except Exception as error:  # noqa: BLE001 - the hub, its HTTP client and the disk each have their own
        raise MissingFileError(
            f"{name} cannot be downloaded ({first_line(error)}): get {where} on a machine with network, and name it as "
            "file= (--file)"
        ) from error
    # the cache names large files by the SHA-256 that the hub states, and does not compare it
    stated, found = path.resolve().name, file_sha256(path)
    if SHA256.fullmatch(stated) and stated != found:
        raise UserError(
            f"{path} has the SHA-256 {found[:12]}…, and the hub states {stated[:12]}…: delete it, and try again"
        )
    log.info("%s: SHA-256 %s", where, found)
    return path


def _check_kind(release: Release, tokenizer: Tokenizer) -> None:
    """Raise UserError for a tokenizer of the family that is not what its name says."""
    covered = tokenizer.image_size // tokenizer.grid[0]
    if release.downsampling not in (None, covered):
        raise UserError(f"a position covers {covered} pixels a side, not {release.downsampling}")
    found = 0 if tokenizer.spec is None else tokenizer.spec.num_sub_codes
    if release.sub_codes not in (None, found):
        raise UserError(f"a position has {found} sub-codes, not {release.sub_codes}")


def _check_latents(source: Source, shape: tuple[int, ...], tokenizer: Tokenizer, tokenizer_run: str) -> None:
    if shape != tokenizer.latent_shape:
        expected, found = (" × ".join(map(str, sizes)) for sizes in (shape, tokenizer.latent_shape))
        raise UserError(
            f"{source.file} models latents of {expected}, and {tokenizer_run} has {found}: name the file of its own "
            "tokenizer as tokenizer_file="
        )


def _url(repository: str, file: str) -> str:
    return f"https://huggingface.co/{repository}/resolve/main/{file}"
