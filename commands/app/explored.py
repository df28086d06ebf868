"""Objects of the page: a tokenizer, its generator, and validation images with their codes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from commands.app.actions import CodeIndex, encode
from commands.measuring import batches_of, directory_of
from commands.preset import Preset, image_data
from commands.progress import track
from datamodules.images import ImageDataModule, check_image_size
from polytoken.errors import MissingFileError, UserError
from polytoken.fingerprint import fingerprint
from polytoken.images import from_uint8, to_uint8
from polytoken.layout import CHECKPOINTS
from polytoken.loading import GENERATOR, Checkpoint
from polytoken.pipeline import GenerationPipeline
from polytoken.pretrained import from_pretrained
from polytoken.specs import Encoding
from polytoken.tokenizers import Tokenizer

ENCODED = 16  # images at a time


@dataclass(frozen=True)
class Explored:
    """Loaded networks and images.

    Args:
        name: of the tokenizer, as it was given.
        tokenizer: on its device.
        pipeline: of its generator; None without one.
        images: uint8 (M, 3, H, W), of the validation split; M is 0 without one.
        labels: names of their classes.
        codes: of these images; None without images, or for a tokenizer without codes.
        note: why there are no images; empty if there are.
    """

    name: str
    tokenizer: Tokenizer
    pipeline: GenerationPipeline | None
    images: Tensor
    labels: list[str]
    codes: CodeIndex | None
    note: str = ""

    @classmethod
    def load(
        cls,
        tokenizer: Path | None,
        generator: Path | None = None,
        preset: str | None = None,
        max_images: int = 500,
        device: torch.device | None = None,
    ) -> Explored:
        """Load runs or exported folders, and the images of a tokenizer's run.

        Args:
            tokenizer: run, checkpoint or exported folder; None takes that of the generator.
            generator: the same of a generator; None is none.
            preset: whose images are read; None reads those that the tokenizer's run names.
            max_images: most validation images, evenly spread.
            device: of the networks; None is the CPU.

        Raises:
            MissingFileError: if there is no checkpoint.
            UserError: if the generator was trained on another tokenizer, or the preset's images do not fit.
        """
        place, network, pipeline = _networks(tokenizer, generator)
        network.to(device or torch.device("cpu"))
        if pipeline is not None:
            pipeline.to(device or torch.device("cpu"))
        images, labels, note = torch.empty(0, 3, network.image_size, network.image_size, dtype=torch.uint8), [], ""
        try:
            data = Preset.load(preset).data if preset else image_data(directory_of(place) / "config.yaml")
            check_image_size(data, network.image_size, f"the image_size of the tokenizer in {place}")
            images, labels = _validation_images(data, max_images)
        except (UserError, OSError) as error:
            if preset is not None:
                raise
            note = f"No validation images: {error}"
        codes = CodeIndex.of(_encodings(network, images)) if network.spec and len(images) else None
        return cls(str(place), network, pipeline, images, labels, codes, note)

    def image(self, row: int) -> Tensor:
        """A validation image (1, 3, H, W) in [-1, 1]."""
        return from_uint8(self.images[row : row + 1])

    def subspace_names(self) -> list[str]:
        """Names of the subspaces in the page."""
        sizes = self.tokenizer.spec.codebook_sizes if self.tokenizer.spec else self.tokenizer.subspace_channels
        unit = "codes" if self.tokenizer.spec else "channels"
        return [f"{i} ({size:,} {unit})" for i, size in enumerate(sizes)]


def _networks(tokenizer: Path | None, generator: Path | None) -> tuple[Path, Tokenizer, GenerationPipeline | None]:
    """The tokenizer's place, the tokenizer, and the pipeline that uses it."""
    if generator is None:
        if tokenizer is None:
            raise UserError("there is nothing to explore: name a --tokenizer, a --generator, or both")
        found = _open(tokenizer)
        if isinstance(found, GenerationPipeline):
            return Path(found.origin["tokenizer"]["run"]), found.tokenizer, found
        return tokenizer, found, None
    run = tokenizer if tokenizer is not None and not _exported(tokenizer) else None
    pipeline = _open(generator, run)
    if not isinstance(pipeline, GenerationPipeline):
        raise UserError(f"--generator {generator} is a tokenizer: name the run of a generator, or leave it out")
    if tokenizer is None or run is not None and not _exported(generator):
        return Path(pipeline.origin["tokenizer"]["run"]), pipeline.tokenizer, pipeline
    own = _open(tokenizer)
    own = own.tokenizer if isinstance(own, GenerationPipeline) else own
    if fingerprint(own) != fingerprint(pipeline.tokenizer):
        raise UserError(f"--generator {generator} was trained on another tokenizer than {tokenizer}: name its own one")
    return tokenizer, pipeline.tokenizer, pipeline


def _open(place: Path, tokenizer_run: Path | None = None) -> Tokenizer | GenerationPipeline:
    """Load a run, a checkpoint or an exported folder."""
    if not place.exists():
        raise MissingFileError(f"there is no run {place}: train it first (make tokenizer, make generator; make demo)")
    if _exported(place):
        return from_pretrained(place)
    checkpoint = Checkpoint.open(place)
    if GENERATOR in checkpoint.content:
        return GenerationPipeline.from_run(place, tokenizer_run)
    return checkpoint.tokenizer()


def _exported(place: Path) -> bool:
    return (place / "config.json").is_file() and not (place / CHECKPOINTS).exists()


def _validation_images(data: ImageDataModule, max_images: int) -> tuple[Tensor, list[str]]:
    """Images uint8 (M, 3, H, W) and the names of their classes."""
    batches = [*batches_of(data, "validation", max_images)]
    names = {index: name for name, index in data.class_to_idx.items()}
    labels = [names.get(int(label), str(int(label))) for batch in batches for label in batch["label"]]
    return torch.cat([to_uint8(batch["image"]) for batch in batches]), labels


def _encodings(tokenizer: Tokenizer, images: Tensor) -> Iterator[Encoding]:
    for batch in track(images.split(ENCODED), "validation images, encoded batches"):
        yield encode(tokenizer, from_uint8(batch))
