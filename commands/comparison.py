"""Network and real images that the evaluation programs compare with."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from artifacts.reference import target_of_file
from artifacts.repository import ADM_REFERENCE
from commands.preset import OWN_NETWORKS, Preset, measured_reference
from commands.program import best_device
from datamodules.sources.base import Split
from polytoken.errors import UserError
from polytoken.files import file_sha256
from polytoken.metrics.extractor import Extractor
from polytoken.metrics.extractors import load_extractor
from polytoken.metrics.image_metrics import Target
from polytoken.metrics.image_set import ImageSet, ImageStatistics, Use
from polytoken.metrics.images import to_uint8


def add_extractor_arguments(parser: ArgumentParser) -> None:
    """Add the options of :func:`extractor_of`."""
    parser.add_argument("--preset", default="digits", help="preset of the real images and the judge")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="root of all runs")
    parser.add_argument(
        "--extractor",
        help="judge, efficientnet_lite2, inception, or a teacher (dinov2_base …); by default the judge of the preset, "
        "efficientnet_lite2 if it is small and has none, or else inception",
    )
    parser.add_argument("--weights", type=Path, help="file of the extractor; by default the one of `make weights`")


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of :meth:`Comparison.of`."""
    add_extractor_arguments(parser)
    parser.add_argument(
        "--reference",
        type=Path,
        help="npz of statistics; of a preset without its own network, by default that of `make reference` or ADM's",
    )
    parser.add_argument("--force", action="store_true", help="accept a reference of the wrong split, with a note")


def extractor_of(given: Namespace, preset: Preset | None) -> Extractor:
    """Load the network that the options name; by default the preset's own, or Inception without one.

    Raises:
        MissingFileError: if weights are missing.
        UserError: if the name is unknown, the preset trains no such network, or the file holds something else.
    """
    name, weights = extractor_name(given, preset), given.weights
    if weights is None and preset is not None and name in preset.networks:
        weights = preset.network_file(name, given.runs)
    return load_extractor(name, weights, best_device())


def extractor_name(given: Namespace, preset: Preset | None) -> str:
    """The network that the options name; by default the preset's own, or Inception without one.

    Raises:
        UserError: if the preset trains no network of this name, and no file of another one is given.
    """
    if preset is None:
        return given.extractor or "inception"
    default = preset.own_network or "inception"
    name = given.extractor or default
    if name in OWN_NETWORKS and name not in preset.networks and given.weights is None:
        raise UserError(
            f"the preset {preset.name} trains no {name}: leave --extractor out, which compares by {default}, or name "
            "the file of another one by --weights"
        )
    return name


def default_reference(runs: Path, preset: str, extractor: str, use: Use) -> Path:
    """File that images of a preset are compared with: its own of `make reference`, or ADM's of ImageNet.

    Samples are compared with training images, reconstructions with validation images.

    Raises:
        UserError: neither exists.
    """
    split: Split = "train" if use == "generation" else "validation"
    own = measured_reference(runs, preset, split, extractor)
    published = [ADM_REFERENCE] if (preset, extractor, use) == ("imagenet", "inception", "generation") else []
    for path in (own, *published):
        if path.exists():
            return path
    remedy = f"`make reference PRESET={preset} SPLIT={split} ARGS='--extractor {extractor}'` measures it"
    raise UserError(
        f"metrics by {extractor} are distances to a reference, and there is no {own}: {remedy}"
        f"{', `make weights` fetches that of ADM' if published else ''}, and --reference FILE.npz names another"
    )


@dataclass(frozen=True)
class Comparison:
    """A network, and the real images to compare with.

    Args:
        extractor: the network.
        preset: preset of its own network, whose size and classes the images must have; None accepts any.
        reference: file of statistics; None compares with the preset's validation images.
        use: kind of the compared images.
        forced: accept a reference of another split.
    """

    extractor: Extractor
    preset: Preset | None
    reference: Path | None = None
    use: Use = "generation"
    forced: bool = False

    @classmethod
    def of(cls, given: Namespace, use: Use = "generation") -> Comparison:
        """Build it from the options of :func:`add_arguments`.

        Raises:
            UserError: as :func:`extractor_of`, or if a network needs a reference and none is named.
        """
        preset = Preset.load(given.preset)
        name = extractor_name(given, preset)
        reference = given.reference
        if reference is None and name != preset.own_network:
            reference = default_reference(given.runs, preset.name, name, use)
        extractor = extractor_of(given, preset)
        return cls(extractor, preset if name == preset.own_network else None, reference, use, given.force)

    @property
    def own(self) -> Preset:
        """Preset of the network."""
        assert self.preset is not None  # `of` requires a reference otherwise
        return self.preset

    def target(self, image_size: tuple[int, int]) -> Target:
        """Measure or read the real images, for images of a size.

        Raises:
            MissingFileError: if the reference is missing.
            UserError: if it does not fit.
        """
        if self.reference is None:
            return Target.of_images(self.measure(self.own.images("validation")), self._validation)
        return target_of_file(self.reference, self.extractor, image_size, self.use, self.forced)

    def measure(
        self, batches: Iterable[tuple[Tensor, Tensor | None]], count: int = 1, keep_rows: bool = True
    ) -> ImageStatistics:
        """Measure batches of images (B, 3, H, W), uint8 or in [-1, 1], with their labels.

        Args:
            batches: images and labels.
            count: number of images, which determines the splits of Inception's score.
            keep_rows: keep the features, for precision, recall and KID.

        Raises:
            UserError: if an image or its features are not finite.
        """
        images = ImageSet.for_use(self.extractor, count, keep_rows, self.use)
        for batch, labels in batches:
            if batch.is_floating_point():
                if not bool(batch.isfinite().all()):  # in 8 bits they would pass for black ones
                    raise UserError("images are not finite: the network that made them is broken, train it again")
                batch = to_uint8(batch)
            images.add(batch, labels)
        return images.compute()

    def settings(self) -> dict[str, Any]:
        """Everything besides the images that the metrics depend on, as plain data."""
        return {
            "extractor": self.extractor.name,
            "extractor_sha256": self.extractor.sha256,
            "resize": self.extractor.resize,
            "reference": self._validation if self.reference is None else file_sha256(self.reference),
            "use": self.use,
        }

    def check(self, image_size: tuple[int, int], num_classes: int, class_names: list[str] | None, what: Any) -> None:
        """Raise unless the images of ``what`` have the size and the classes of the judge's preset.

        Raises:
            UserError: naming both sides.
        """
        if self.preset is None:
            return
        name, data = self.preset.name, self.preset.data
        if image_size != (data.image_size,) * 2:
            raise UserError(
                f"{what} has images of {image_size[0]} × {image_size[1]} px, and the images of {name} have "
                f"{data.image_size} × {data.image_size}: name the preset that they were made for"
            )
        known = self.extractor.num_classes
        if known is not None and num_classes > known:
            raise UserError(
                f"{what} has label {num_classes - 1}, and the judge of {name} knows the {known} classes 0 … "
                f"{known - 1}: name the preset that they were made for"
            )
        names = {index: label for label, index in data.class_to_idx.items()}
        for index, label in enumerate(class_names or ()):
            if names.get(index) != label:
                raise UserError(
                    f"class {index} is {label} in {what} and {names.get(index)} in {name}: name the preset that they "
                    "were made for"
                )

    @property
    def _validation(self) -> str:
        return f"{self.own.name} validation images"
