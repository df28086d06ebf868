"""What a command measures images with and against: a preset's judge and real images, or any network and a file."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch

from artifacts.reference import target_of_file
from commands.extractors import HELP, extractor_named
from commands.preset import LABELLED, Preset
from polytoken.errors import UserError
from polytoken.files import file_sha256
from polytoken.metrics.extractor import Extractor
from polytoken.metrics.generation import Target, Use, begin
from polytoken.metrics.image_set import Measured
from polytoken.metrics.images import to_uint8


@dataclass(frozen=True)
class Measuring:
    """A network, and the real images to compare with.

    Args:
        extractor: the network.
        preset: whose images and classes they are; None is anyone's.
        reference: file of statistics; None compares with the preset's validation images.
        use: what the images are.
        forced: whether a reference of another split is taken.
    """

    extractor: Extractor
    preset: Preset | None
    reference: Path | None = None
    use: Use = "generation"
    forced: bool = False

    @classmethod
    def chosen(cls, given: argparse.Namespace) -> Measuring:
        """As the options of :func:`add_arguments` say.

        Raises:
            UserError: if the preset is unknown, or a network needs a reference and none is named.
            FileNotFoundError: if weights are missing.
        """
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        preset = Preset.load(given.preset)
        name = given.extractor or ("judge" if preset.has_judge else "inception")
        if name != "judge" and given.reference is None:
            raise UserError(
                f"figures by {name} are distances to a reference file, and none is named: --reference FILE.npz takes "
                "ADM's (VIRTUAL_imagenet256_labeled.npz) or one that `make reference` writes"
            )
        extractor = extractor_named(name, preset, given.runs, given.weights, device)
        use = getattr(given, "use", "generation")
        return cls(extractor, preset if name == "judge" else None, given.reference, use, given.force)

    def target(self, image_size: tuple[int, int]) -> Target:
        """The real images, for images of so many pixels.

        Raises:
            FileNotFoundError: if the reference is missing.
            ValueError: if it does not fit.
        """
        if self.reference is None:
            return Target.of_images(self.measure(self.own.real("validation")), f"{self.own.name} validation images")
        return target_of_file(self.reference, self.extractor, image_size, self.use, self.forced)

    @property
    def own(self) -> Preset:
        """The preset that the judge belongs to."""
        assert self.preset is not None  # `chosen` sees to it where there is no reference
        return self.preset

    def measure(self, batches: Iterable[LABELLED], count: int = 1, keep_rows: bool = True) -> Measured:
        """Measure images (B, 3, H, W) in [-1, 1] and their labels; the score of Inception asks their ``count``.

        Raises:
            ValueError: if an image or its features are not finite.
        """
        images = begin(self.extractor, count, keep_rows, self.use)
        for batch, labels in batches:
            if not bool(batch.isfinite().all()):  # in 8 bits they would pass for black ones
                raise UserError("images are not finite: the network that made them is broken, train it anew")
            images.add(to_uint8(batch), labels)
        return images.compute()

    def settings(self) -> dict[str, Any]:
        """What figures depend on besides the images, as plain data."""
        against = f"{self.own.name} validation images" if self.reference is None else file_sha256(self.reference)
        return {
            "extractor": self.extractor.name,
            "extractor_sha256": self.extractor.sha256,
            "resize": self.extractor.resize,
            "reference": against,
            "use": self.use,
        }

    def check(self, image_size: tuple[int, int], num_classes: int, class_names: list[str] | None, what: Any) -> None:
        """Refuse images of another preset's size or classes; anyone's fit where no preset is leant on.

        Raises:
            ValueError: naming both sides.
        """
        if self.preset is None:
            return
        name, data = self.preset.name, self.preset.data
        expected = (data.image_size,) * 2
        if image_size != expected:
            raise UserError(
                f"{what} has images of {image_size[0]} × {image_size[1]} px, and the images of {name} have "
                f"{expected[0]} × {expected[1]}: name the preset that they were made for"
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
                raise UserError(f"class {index} is {label} in {what} and {names.get(index)} in {name}")


def add_arguments(parser: argparse.ArgumentParser, with_use: bool = False) -> None:
    """The options that say what to measure with and against."""
    parser.add_argument("--preset", default="digits", help="whose real images and judge to measure with")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="root of all runs")
    parser.add_argument("--extractor", help=HELP)
    parser.add_argument("--weights", type=Path, help="of the extractor; by default those of `make weights`")
    parser.add_argument(
        "--reference", type=Path, help="npz of statistics to compare with: ADM's, or `make reference`'s"
    )
    if with_use:
        parser.add_argument(
            "--use",
            choices=get_args(Use),
            default="generation",
            help="what the images are, which decides the reference",
        )
    parser.add_argument(
        "--force", action="store_true", help="take a reference of the wrong split; the file will say so"
    )
